# What runs all the time: the images, the streaming job, the trigger of retrainings, and simulated viewers if wanted.

locals {
  images      = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
  build_image = "${local.images}/orchestration:${var.image_tag}"
  templates = {
    for file in fileset("${path.module}/../templates", "*.json") :
    trimsuffix(file, ".json") => jsondecode(file("${path.module}/../templates/${file}"))
  }
}

# Cloud Build makes the images once per tag. It runs as the account `build`, which can push images and nothing else.
resource "terraform_data" "images" {
  triggers_replace = [var.image_tag, var.base_images]

  provisioner "local-exec" {
    working_dir = "${path.module}/.."
    command = join(" ", [
      "gcloud builds submit --project=${var.project} --region=${var.region} --config=templates/cloudbuild.yaml",
      "--gcs-source-staging-dir=gs://${google_storage_bucket.artifacts.name}/build",
      "--substitutions=_IMAGES=${local.images},_TAG=${var.image_tag},_ACCOUNT=${google_service_account.part["build"].name},_BEAM_BASE=${var.base_images.beam},_LAUNCHER_BASE=${var.base_images.launcher},_PYTHON_BASE=${var.base_images.python} .",
    ])
  }
  depends_on = [google_storage_bucket_iam_member.right, google_artifact_registry_repository_iam_member.right, google_project_iam_member.right]
}

# The specs of the flex templates, as `gcloud dataflow flex-template build` would write them.
resource "google_storage_bucket_object" "template" {
  for_each     = local.templates
  bucket       = google_storage_bucket.artifacts.name
  name         = "templates/${each.key}.json"
  content_type = "application/json"
  content = jsonencode({
    image              = "${local.images}/${each.key}:${var.image_tag}"
    metadata           = each.value
    sdkInfo            = { language = "PYTHON" }
    defaultEnvironment = {}
  })
  depends_on = [terraform_data.images]
}

# The streaming job. Another tag or parameter updates it in place; `terraform destroy` drains it, so no event is lost.
resource "google_dataflow_flex_template_job" "ingest_events" {
  provider                     = google-beta
  name                         = "${var.name}-ingest-events"
  region                       = var.region
  container_spec_gcs_path      = "gs://${google_storage_bucket.artifacts.name}/${google_storage_bucket_object.template["ingest_events"].name}"
  sdk_container_image          = "${local.images}/ingest_events:${var.image_tag}"
  service_account_email        = google_service_account.part["dataflow"].email
  subnetwork                   = "regions/${var.region}/subnetworks/${google_compute_subnetwork.own.name}"
  ip_configuration             = "WORKER_IP_PRIVATE"
  temp_location                = "gs://${google_storage_bucket.artifacts.name}/temp"
  staging_location             = "gs://${google_storage_bucket.artifacts.name}/temp"
  machine_type                 = var.ingest_machine_type
  max_workers                  = var.ingest_max_workers
  enable_streaming_engine      = true
  additional_experiments       = ["streaming_mode_at_least_once"]
  on_delete                    = "drain"
  skip_wait_on_job_termination = false

  parameters = merge(
    {
      events            = "pubsub:${google_pubsub_subscription.ingest.id}"
      warehouse         = "bigquery:${var.project}.${google_bigquery_dataset.events.dataset_id}"
      dead_letter_topic = google_pubsub_topic.dead_letters.id
      write_method      = "storage_write_api"
    },
    var.observation_dim == null ? {} : { observation_dim = var.observation_dim },
    var.num_actions == null ? {} : { num_actions = var.num_actions },
  )
  depends_on = [
    google_bigquery_table.events, google_project_iam_member.right, google_storage_bucket_iam_member.right,
    google_pubsub_subscription_iam_member.right, google_pubsub_topic_iam_member.right,
  ]
}

# Live learning, if it has a start. In exactly-once mode, Dataflow's default: a message that is lost is missing until the
# window's record is there. Another tag updates it in place; draining it loses nothing but provisional sums.
resource "google_dataflow_flex_template_job" "learn_live" {
  count                        = var.live_start == "" ? 0 : 1
  provider                     = google-beta
  name                         = "${var.name}-learn-live"
  region                       = var.region
  container_spec_gcs_path      = "gs://${google_storage_bucket.artifacts.name}/${google_storage_bucket_object.template["learn_live"].name}"
  sdk_container_image          = "${local.images}/learn_live:${var.image_tag}"
  service_account_email        = google_service_account.part["dataflow"].email
  subnetwork                   = "regions/${var.region}/subnetworks/${google_compute_subnetwork.own.name}"
  ip_configuration             = "WORKER_IP_PRIVATE"
  temp_location                = "gs://${google_storage_bucket.artifacts.name}/temp"
  staging_location             = "gs://${google_storage_bucket.artifacts.name}/temp"
  machine_type                 = var.ingest_machine_type
  max_workers                  = var.ingest_max_workers
  enable_streaming_engine      = true
  on_delete                    = "drain"
  skip_wait_on_job_termination = false

  parameters = {
    events                = "pubsub:${google_pubsub_subscription.live.id}"
    windows               = "gs://${google_storage_bucket.artifacts.name}/windows"
    live                  = "gs://${google_storage_bucket.artifacts.name}/live"
    start                 = var.live_start
    window_seconds        = var.live_window_seconds
    observation_dim       = var.observation_dim
    num_actions           = var.num_actions
    reward_window_seconds = var.live_reward_window_seconds
    missing_reward        = var.live_missing_reward
    buckets               = 4 * var.ingest_max_workers
  }
  depends_on = [
    google_project_iam_member.right, google_storage_bucket_iam_member.right, google_pubsub_subscription_iam_member.right,
  ]

  lifecycle {
    precondition {
      condition     = var.observation_dim != null && var.num_actions != null
      error_message = "observation_dim and num_actions must be set to learn live."
    }
  }
}

# The function of orchestration/pipelines/triggers.py: a new window's manifest starts a retraining.
resource "google_cloud_run_v2_service" "retrain" {
  name     = "${var.name}-retrain"
  location = var.region
  ingress  = "INGRESS_TRAFFIC_INTERNAL_ONLY"

  template {
    service_account = google_service_account.part["trigger"].email
    timeout         = "600s"

    containers {
      image   = local.build_image
      command = ["functions-framework"]
      args = [
        "--source=/app/orchestration/pipelines/triggers.py", "--target=retrain_on_manifest", "--signature-type=cloudevent",
      ]
      env {
        name  = "RECOMMENDER_CONFIG"
        value = var.configuration
      }
      env {
        name  = "RECOMMENDER_PROJECT"
        value = var.project
      }
      resources {
        limits = { cpu = "1", memory = "2Gi" }
      }
    }
  }
  depends_on = [terraform_data.images]
}

resource "google_cloud_run_v2_service_iam_member" "trigger_invokes_retrain" {
  name     = google_cloud_run_v2_service.retrain.name
  location = var.region
  role     = "roles/run.invoker"
  member   = local.member.trigger
}

# Cloud Storage's agent publishes the events that Eventarc delivers. The grant belongs to the project: only one
# environment of a project makes it, or destroying another would take it away.
data "google_storage_project_service_account" "agent" {}

resource "google_project_iam_member" "storage_publishes_events" {
  count   = var.makes_project_grants ? 1 : 0
  project = var.project
  role    = "roles/pubsub.publisher"
  member  = data.google_storage_project_service_account.agent.member
}

resource "google_eventarc_trigger" "manifest" {
  name            = "${var.name}-manifest"
  location        = var.region
  service_account = google_service_account.part["trigger"].email

  matching_criteria {
    attribute = "type"
    value     = "google.cloud.storage.object.v1.finalized"
  }
  matching_criteria {
    attribute = "bucket"
    value     = google_storage_bucket.artifacts.name
  }
  destination {
    cloud_run_service {
      service = google_cloud_run_v2_service.retrain.name
      region  = var.region
    }
  }
  depends_on = [google_project_iam_member.storage_publishes_events, google_project_iam_member.right]
}

# Simulated viewers (orchestration/traffic.py), an hour at a time.
resource "google_cloud_run_v2_job" "traffic" {
  count    = var.traffic_rate > 0 ? 1 : 0
  name     = "${var.name}-traffic"
  location = var.region

  template {
    template {
      service_account = google_service_account.part["traffic"].email
      timeout         = "3900s"
      max_retries     = 0

      containers {
        image   = local.build_image
        command = ["python"]
        args = [
          "-m", "orchestration.traffic", "--config=${var.configuration}", "--project=${var.project}", "--rate=${var.traffic_rate}",
          "--seconds=3600", "--start=2026-01-01T00:00:00Z",
        ]
        resources {
          limits = { cpu = "1", memory = "2Gi" }
        }
      }
    }
  }
  depends_on = [terraform_data.images]
}

resource "google_cloud_run_v2_job_iam_member" "traffic_starts_itself" {
  count    = var.traffic_rate > 0 ? 1 : 0
  name     = google_cloud_run_v2_job.traffic[0].name
  location = var.region
  role     = "roles/run.invoker"
  member   = local.member.traffic
}

resource "google_cloud_scheduler_job" "traffic" {
  count     = var.traffic_rate > 0 ? 1 : 0
  name      = "${var.name}-traffic"
  region    = var.region
  schedule  = "0 * * * *"
  time_zone = "Etc/UTC"

  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.traffic[0].id}:run"
    oauth_token {
      service_account_email = google_service_account.part["traffic"].email
    }
  }
}
