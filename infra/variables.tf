variable "project" {
  description = "Google Cloud project id."
  type        = string
}

variable "region" {
  description = "Region of the bucket, the data set, Dataflow and Vertex AI."
  type        = string
  default     = "europe-west1"
}

variable "name" {
  description = "Prefix of everything that is created; also the data set's name, with underscores."
  type        = string
  default     = "bandit"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,17}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 19 lower-case letters, digits and hyphens, and begin with a letter."
  }
}

variable "events_retention_days" {
  description = "Days until events leave the tables; 0 keeps them."
  type        = number
  default     = 400

  validation {
    condition     = var.events_retention_days >= 0
    error_message = "events_retention_days must be 0 or more."
  }
}

variable "temp_retention_days" {
  description = "Days until Dataflow's temporary files are deleted."
  type        = number
  default     = 7
}

variable "image_tag" {
  description = "Tag of the images: the commit that they are built from. The configuration's image_tag is the same."
  type        = string

  validation {
    condition     = !contains(["latest", "stable"], var.image_tag)
    error_message = "image_tag must be a tag that never moves, such as the commit."
  }
}

variable "base_images" {
  description = "The images that ours are built on, each with its digest (name:tag@sha256:…), so that a build can be repeated."
  type = object({
    beam     = string # apache/beam_python3.11_sdk
    launcher = string # gcr.io/dataflow-templates-base/python311-template-launcher-base
    python   = string # python:3.11-slim
  })

  validation {
    condition     = alltrue([for image in values(var.base_images) : can(regex("@sha256:[0-9a-f]{64}$", image))])
    error_message = "base_images must each end with @sha256: and 64 hexadecimal digits."
  }
}

variable "configuration" {
  description = "The configuration of the pipelines: dev or prod, or a file that is in the image."
  type        = string
}

variable "subnetwork_range" {
  description = "Addresses of the subnetwork in which Dataflow's workers run."
  type        = string
  default     = "10.128.0.0/20"
}

variable "makes_project_grants" {
  description = "Whether this environment makes the grants that belong to the project. True in one environment of a project."
  type        = bool
  default     = true
}

variable "ingest_machine_type" {
  description = "Machine type of the streaming job's workers."
  type        = string
  default     = "n2-standard-2"
}

variable "ingest_max_workers" {
  description = "Most workers of the streaming job."
  type        = number
  default     = 5

  validation {
    condition     = var.ingest_max_workers >= 1
    error_message = "ingest_max_workers must be 1 or more."
  }
}

variable "observation_dim" {
  description = "Length of an observation; a decision with another becomes a dead letter. Null: any."
  type        = number
  default     = null
}

variable "num_actions" {
  description = "Actions of the catalogue; a decision for another becomes a dead letter. Null: any."
  type        = number
  default     = null
}

variable "live_start" {
  description = "Start of the first window to learn live, as for export_trajectories (RFC 3339); empty: no live learning."
  type        = string
  default     = ""

  validation {
    condition     = var.live_start == "" || can(timeadd(var.live_start, "0s"))
    error_message = "live_start must be a time such as 2026-01-01T00:00:00Z, or empty."
  }
}

variable "live_window_seconds" {
  description = "Length of a training window, for live learning."
  type        = number
  default     = 300
}

variable "live_reward_window_seconds" {
  description = "How long a reward is waited for, for live learning: as the windows are exported."
  type        = number
  default     = 60
}

variable "live_missing_reward" {
  description = "What silence means, for live learning: default or drop, as the windows are exported."
  type        = string
  default     = "default"

  validation {
    condition     = contains(["default", "drop"], var.live_missing_reward)
    error_message = "live_missing_reward must be default or drop."
  }
}

variable "traffic_rate" {
  description = "Simulated viewers per second; 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.traffic_rate >= 0
    error_message = "traffic_rate must be 0 or more."
  }
}

variable "alert_email" {
  description = "Where alerts are sent; empty: they are shown in Cloud Monitoring only."
  type        = string
  default     = ""
}
