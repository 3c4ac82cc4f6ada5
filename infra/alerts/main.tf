# The filters and conditions of alerts.json for one environment. Needs no provider, so that a test can evaluate it.

variable "name" {
  description = "The environment."
  type        = string
}

locals {
  file = jsondecode(file("${path.module}/alerts.json"))
  alerts = {
    for key, alert in local.file.alerts : key => merge(alert, {
      filter = alert.resource == "" ? "metric.type=\"logging.googleapis.com/user/${var.name}-${alert.metric}\"" : join(" AND ", [
        "metric.type=\"${alert.metric}\"",
        "resource.type=\"${alert.resource}\"",
        "resource.labels.${alert.label}=\"${join("-", compact([var.name, alert.value]))}\"",
      ])
    })
  }
}

output "logs" {
  description = "Regular expressions of what is counted in the log, by name: the ids of runs begin with the environment's name."
  value       = { for key, expression in local.file.logs : key => replace(expression, "NAME", var.name) }
}

output "alerts" {
  description = "The alerts with their filters, by name."
  value       = local.alerts
}
