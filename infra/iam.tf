# One service account per part, with only the rights that the part uses.

resource "google_service_account" "part" {
  for_each = {
    dataflow  = "Runs the Beam jobs"
    predictor = "Serves, and publishes decisions and rewards"
    traffic   = "Simulated viewers: call the endpoint, and publish rewards"
    trainer   = "Trains and evaluates policies"
    pipelines = "Runs the retraining pipelines"
  }
  account_id   = "${var.name}-${each.key}"
  display_name = each.value
}

locals {
  member = { for part, account in google_service_account.part : part => account.member }
}

# Dataflow's workers have Dataflow's worker role, and the rights to what the jobs read and write.
resource "google_project_iam_member" "dataflow_worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = local.member.dataflow
}

resource "google_pubsub_subscription_iam_member" "dataflow_reads_events" {
  for_each     = toset(["roles/pubsub.subscriber", "roles/pubsub.viewer"])
  subscription = google_pubsub_subscription.ingest.name
  role         = each.value
  member       = local.member.dataflow
}

resource "google_pubsub_topic_iam_member" "dataflow_publishes_dead_letters" {
  for_each = toset(["roles/pubsub.publisher", "roles/pubsub.viewer"])
  topic    = google_pubsub_topic.dead_letters.name
  role     = each.value
  member   = local.member.dataflow
}

resource "google_bigquery_dataset_iam_member" "dataflow_writes_tables" {
  dataset_id = google_bigquery_dataset.events.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = local.member.dataflow
}

# Load jobs, the count before an export, and read sessions belong to the project.
resource "google_project_iam_member" "dataflow_runs_bigquery_jobs" {
  for_each = toset(["roles/bigquery.jobUser", "roles/bigquery.readSessionUser"])
  project  = var.project
  role     = each.value
  member   = local.member.dataflow
}

resource "google_storage_bucket_iam_member" "dataflow_writes_windows" {
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.objectAdmin"
  member = local.member.dataflow
}

resource "google_artifact_registry_repository_iam_member" "dataflow_pulls_images" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = local.member.dataflow
}

# The predictor publishes events and reads policies.
resource "google_pubsub_topic_iam_member" "predictor_publishes_events" {
  topic  = google_pubsub_topic.events.name
  role   = "roles/pubsub.publisher"
  member = local.member.predictor
}

resource "google_storage_bucket_iam_member" "predictor_reads_policies" {
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.objectViewer"
  member = local.member.predictor

  # A listing belongs to the bucket, so its resource name has no folder: the prefix that it asks for decides.
  condition {
    title = "policies only"
    expression = join(" || ", [
      "resource.name.startsWith('projects/_/buckets/${google_storage_bucket.artifacts.name}/objects/policies/')",
      "api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('policies/')",
    ])
  }
}

# The trainer reads windows and writes policies. As a step of a pipeline it also writes the run's records and outputs,
# and as a trial the policies of a study.
resource "google_storage_bucket_iam_member" "trainer_reads_artifacts" {
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.objectViewer"
  member = local.member.trainer
}

resource "google_storage_bucket_iam_member" "trainer_writes_policies_and_runs" {
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.objectAdmin"
  member = local.member.trainer

  condition {
    title = "policies and runs only"
    expression = join(" || ", [
      for folder in ["policies", "pipelines", "runs", "studies"] :
      "resource.name.startsWith('projects/_/buckets/${google_storage_bucket.artifacts.name}/objects/${folder}/')"
    ])
  }
}

# The pipelines start Dataflow jobs, training jobs and roll-outs, which run as the other parts' accounts.
resource "google_project_iam_member" "pipelines_start_jobs" {
  for_each = toset(["roles/aiplatform.user", "roles/dataflow.developer"])
  project  = var.project
  role     = each.value
  member   = local.member.pipelines
}

# Also as themselves: the trigger runs as the pipelines' account, and submits pipelines that run as it too.
resource "google_service_account_iam_member" "pipelines_act_as_parts" {
  for_each           = toset(["dataflow", "pipelines", "predictor", "trainer"])
  service_account_id = google_service_account.part[each.value].name
  role               = "roles/iam.serviceAccountUser"
  member             = local.member.pipelines
}

resource "google_storage_bucket_iam_member" "pipelines_write_artifacts" {
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.objectAdmin"
  member = local.member.pipelines
}

# A canary compares the rewards in the tables.
resource "google_bigquery_dataset_iam_member" "pipelines_read_tables" {
  dataset_id = google_bigquery_dataset.events.dataset_id
  role       = "roles/bigquery.dataViewer"
  member     = local.member.pipelines
}

resource "google_project_iam_member" "pipelines_open_read_sessions" {
  project = var.project
  role    = "roles/bigquery.readSessionUser"
  member  = local.member.pipelines
}

# Simulated viewers call the endpoint, and publish rewards as an application would.
resource "google_project_iam_member" "traffic_asks_the_endpoint" {
  project = var.project
  role    = "roles/aiplatform.user"
  member  = local.member.traffic
}

resource "google_pubsub_topic_iam_member" "traffic_publishes_rewards" {
  topic  = google_pubsub_topic.events.name
  role   = "roles/pubsub.publisher"
  member = local.member.traffic
}
