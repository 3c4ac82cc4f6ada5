# Events, tables, files and images of one environment. The pipelines make the endpoint and the models.

locals {
  tables = {
    for file in fileset("${path.module}/tables", "*.json") :
    trimsuffix(file, ".json") => jsondecode(file("${path.module}/tables/${file}"))
  }
  bucket       = "${var.project}-${var.name}"
  retention_ms = var.events_retention_days > 0 ? var.events_retention_days * 86400000 : null
}

resource "google_project_service" "needed" {
  for_each = toset([
    "aiplatform.googleapis.com",
    "artifactregistry.googleapis.com",
    "bigquery.googleapis.com",
    "bigquerystorage.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "eventarc.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "pubsub.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
  ])
  service            = each.value
  disable_on_destroy = false
}

# Decisions, rewards and statuses travel on one topic; the attribute `kind` distinguishes them.
resource "google_pubsub_topic" "events" {
  name                       = "${var.name}-events"
  message_retention_duration = "604800s"
  depends_on                 = [google_project_service.needed]
}

resource "google_pubsub_subscription" "ingest" {
  name                       = "${var.name}-ingest"
  topic                      = google_pubsub_topic.events.id
  ack_deadline_seconds       = 60
  message_retention_duration = "604800s"

  # The job writes unreadable messages to the dead-letter topic and acknowledges them, so the subscription needs no
  # dead-letter policy.
  expiration_policy {
    ttl = ""
  }
}

# For live learning. What it misses the record of the windows brings, so an unread message is kept for the shortest time.
resource "google_pubsub_subscription" "live" {
  name                       = "${var.name}-live"
  topic                      = google_pubsub_topic.events.id
  ack_deadline_seconds       = 60
  message_retention_duration = "600s"

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic" "dead_letters" {
  name       = "${var.name}-dead-letters"
  depends_on = [google_project_service.needed]
}

# Keeps what was published there: the table has it too, but a person who mends a sender wants the messages.
resource "google_pubsub_subscription" "dead_letters" {
  name                       = "${var.name}-dead-letters"
  topic                      = google_pubsub_topic.dead_letters.id
  ack_deadline_seconds       = 60
  message_retention_duration = "604800s"

  expiration_policy {
    ttl = ""
  }
}

resource "google_bigquery_dataset" "events" {
  dataset_id = replace(var.name, "-", "_")
  location   = var.region
  depends_on = [google_project_service.needed]
}

# The files in tables/ are generated from the contract: `python -m beam_jobs.table_schemas infra/tables`.
resource "google_bigquery_table" "events" {
  for_each            = local.tables
  dataset_id          = google_bigquery_dataset.events.dataset_id
  table_id            = each.key
  schema              = jsonencode(each.value.schema)
  clustering          = each.value.clustered_by
  deletion_protection = true

  time_partitioning {
    type          = "DAY"
    field         = each.value.partitioned_by
    expiration_ms = local.retention_ms
  }
}

# Windows, policies and templates; Dataflow's temporary files under temp/.
resource "google_storage_bucket" "artifacts" {
  name                        = local.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  lifecycle_rule {
    condition {
      age            = var.temp_retention_days
      matches_prefix = ["build/", "temp/"]
    }
    action {
      type = "Delete"
    }
  }
  depends_on = [google_project_service.needed]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  depends_on    = [google_project_service.needed]
}
