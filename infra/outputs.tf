output "events_topic" {
  description = "The predictor publishes here."
  value       = google_pubsub_topic.events.id
}

output "subscription" {
  description = "--events of ingest_events."
  value       = "pubsub:${google_pubsub_subscription.ingest.id}"
}

output "live_subscription" {
  description = "--events of learn_live."
  value       = "pubsub:${google_pubsub_subscription.live.id}"
}

output "dead_letter_topic" {
  description = "--dead-letter-topic of ingest_events."
  value       = google_pubsub_topic.dead_letters.id
}

output "warehouse" {
  description = "--warehouse of ingest_events, export_trajectories and replay_dead_letters."
  value       = "bigquery:${var.project}.${google_bigquery_dataset.events.dataset_id}"
}

output "dead_letter_subscription" {
  description = "Where a person pulls published dead letters, for seven days."
  value       = google_pubsub_subscription.dead_letters.id
}

output "streaming_job" {
  description = "Id of the running ingest_events."
  value       = google_dataflow_flex_template_job.ingest_events.job_id
}

output "bucket" {
  description = "Windows, policies, templates and temporary files."
  value       = "gs://${google_storage_bucket.artifacts.name}"
}

output "images" {
  description = "Where images are pushed to."
  value       = local.images
}

output "service_accounts" {
  description = "The account that each part runs as."
  value       = { for part, account in google_service_account.part : part => account.email }
}
