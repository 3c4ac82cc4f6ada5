# A network of the environment's own, without public addresses: Google's APIs are reached privately, the rest (the download
# of MovieLens) through NAT.

resource "google_compute_network" "own" {
  name                    = var.name
  auto_create_subnetworks = false
  depends_on              = [google_project_service.needed]
}

resource "google_compute_subnetwork" "own" {
  name                     = var.name
  region                   = var.region
  network                  = google_compute_network.own.id
  ip_cidr_range            = var.subnetwork_range
  private_ip_google_access = true
}

resource "google_compute_router" "own" {
  name    = var.name
  region  = var.region
  network = google_compute_network.own.id
}

resource "google_compute_router_nat" "own" {
  name                               = var.name
  region                             = var.region
  router                             = google_compute_router.own.name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

# Dataflow's workers exchange data on these ports; Dataflow gives them the tag.
resource "google_compute_firewall" "dataflow_workers" {
  name        = "${var.name}-dataflow-workers"
  network     = google_compute_network.own.id
  source_tags = ["dataflow"]
  target_tags = ["dataflow"]

  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}
