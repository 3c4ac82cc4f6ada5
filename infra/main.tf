# What the jobs, the predictor and the trainer need on Google Cloud. The jobs and endpoints themselves are made by
# `gcloud dataflow flex-template run` and by the pipelines.

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
    "dataflow.googleapis.com",
    "pubsub.googleapis.com",
    "storage.googleapis.com",
  ])
  service            = each.value
  disable_on_destroy = false
}

# Decisions and rewards travel on one topic; the attribute `kind` distinguishes them.
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

resource "google_pubsub_topic" "dead_letters" {
  name       = "${var.name}-dead-letters"
  depends_on = [google_project_service.needed]
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
      matches_prefix = ["temp/"]
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
