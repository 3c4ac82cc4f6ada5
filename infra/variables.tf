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
