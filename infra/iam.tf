# One service account per part, with only the rights that the part uses: rights/rights.json lists them. docs/permissions.md
# names the call behind each, and a test compares the two.

module "rights" {
  source = "./rights"
  bucket = local.bucket
}

resource "google_service_account" "part" {
  for_each     = module.rights.accounts
  account_id   = "${var.name}-${each.key}"
  display_name = each.value
}

resource "google_project_iam_custom_role" "own" {
  for_each    = module.rights.custom_roles
  role_id     = "${replace(var.name, "-", "_")}_${each.key}"
  title       = "${var.name}: ${each.value.title}"
  permissions = each.value.permissions
}

locals {
  member = { for part, account in google_service_account.part : part => account.member }
  custom = { for name, role in google_project_iam_custom_role.own : "custom:${name}" => role.id }
  topics = {
    events       = google_pubsub_topic.events.name
    dead_letters = google_pubsub_topic.dead_letters.name
  }
  subscriptions = {
    ingest = google_pubsub_subscription.ingest.name
    live   = google_pubsub_subscription.live.name
  }
}

resource "google_project_iam_member" "right" {
  for_each = module.rights.on.project
  project  = var.project
  role     = lookup(local.custom, each.value.role, each.value.role)
  member   = local.member[each.value.account]
}

resource "google_storage_bucket_iam_member" "right" {
  for_each = module.rights.on.bucket
  bucket   = google_storage_bucket.artifacts.name
  role     = each.value.role
  member   = local.member[each.value.account]

  dynamic "condition" {
    for_each = each.value.condition == "" ? [] : [each.value.condition]
    content {
      title      = "own folders only"
      expression = condition.value
    }
  }
}

resource "google_bigquery_dataset_iam_member" "right" {
  for_each   = module.rights.on.dataset
  dataset_id = google_bigquery_dataset.events.dataset_id
  role       = each.value.role
  member     = local.member[each.value.account]
}

resource "google_pubsub_topic_iam_member" "right" {
  for_each = module.rights.on.topic
  topic    = local.topics[each.value.name]
  role     = each.value.role
  member   = local.member[each.value.account]
}

resource "google_pubsub_subscription_iam_member" "right" {
  for_each     = module.rights.on.subscription
  subscription = local.subscriptions[each.value.name]
  role         = each.value.role
  member       = local.member[each.value.account]
}

resource "google_artifact_registry_repository_iam_member" "right" {
  for_each   = module.rights.on.images
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = each.value.role
  member     = local.member[each.value.account]
}

resource "google_service_account_iam_member" "right" {
  for_each           = module.rights.on.account
  service_account_id = google_service_account.part[each.value.name].name
  role               = each.value.role
  member             = local.member[each.value.account]
}
