# Alerts (alerts/alerts.json), and one dashboard with a chart for each, at whose threshold a line is drawn.

module "alerts" {
  source = "./alerts"
  name   = var.name
}

# What a pipeline's last step prints (orchestration/pipelines/runs.py), counted.
resource "google_logging_metric" "runs" {
  for_each = module.alerts.logs
  name     = "${var.name}-${each.key}"
  filter = join(" AND ", [
    "resource.type=\"ml_job\"",
    "(textPayload=~\"${replace(each.value, "\\", "\\\\")}\" OR jsonPayload.message=~\"${replace(each.value, "\\", "\\\\")}\")",
  ])
  depends_on = [google_project_service.needed]

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }
}

resource "google_monitoring_notification_channel" "email" {
  count        = var.alert_email == "" ? 0 : 1
  display_name = "${var.name}: alerts"
  type         = "email"
  labels       = { email_address = var.alert_email }
  depends_on   = [google_project_service.needed]
}

resource "google_monitoring_alert_policy" "alert" {
  for_each              = module.alerts.alerts
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = google_monitoring_notification_channel.email[*].id
  depends_on            = [google_logging_metric.runs]

  conditions {
    display_name = each.value.title

    dynamic "condition_threshold" {
      for_each = each.value.comparison == "ABSENT" ? [] : [each.value]
      content {
        filter          = condition_threshold.value.filter
        comparison      = condition_threshold.value.comparison
        threshold_value = condition_threshold.value.threshold
        duration        = "${condition_threshold.value.duration_seconds}s"
        # Where something has to happen, no data means that it did not.
        evaluation_missing_data = (
          condition_threshold.value.duration_seconds == 0 ? null :
          condition_threshold.value.comparison == "COMPARISON_LT" ? "EVALUATION_MISSING_DATA_ACTIVE" : "EVALUATION_MISSING_DATA_INACTIVE"
        )
        aggregations {
          alignment_period     = "${condition_threshold.value.period_seconds}s"
          per_series_aligner   = condition_threshold.value.aligner
          cross_series_reducer = condition_threshold.value.aligner == "ALIGN_DELTA" || condition_threshold.value.aligner == "ALIGN_RATE" ? "REDUCE_SUM" : "REDUCE_MAX"
        }
      }
    }

    dynamic "condition_absent" {
      for_each = each.value.comparison == "ABSENT" ? [each.value] : []
      content {
        filter   = condition_absent.value.filter
        duration = "${condition_absent.value.duration_seconds}s"
        aggregations {
          alignment_period   = "${condition_absent.value.period_seconds}s"
          per_series_aligner = condition_absent.value.aligner
        }
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = file("${path.module}/../docs/runbook/${each.key}.md")
  }
}

resource "google_monitoring_dashboard" "own" {
  dashboard_json = jsonencode({
    displayName = var.name
    gridLayout = {
      columns = 2
      widgets = [
        for key, alert in module.alerts.alerts : {
          title = "${alert.title} (${alert.unit})"
          xyChart = {
            dataSets = [{
              plotType = "LINE"
              timeSeriesQuery = {
                timeSeriesFilter = {
                  filter = alert.filter
                  aggregation = {
                    alignmentPeriod  = "${alert.period_seconds}s"
                    perSeriesAligner = alert.aligner
                  }
                }
              }
            }]
            thresholds = alert.comparison == "ABSENT" ? [] : [{ value = alert.threshold }]
          }
        }
      ]
    }
  })
  depends_on = [google_logging_metric.runs]
}
