terraform {
  required_version = ">= 1.5"

  # Where the state is kept: `terraform init -backend-config=bucket=… -backend-config=prefix=…`, as README.md describes.
  backend "gcs" {}

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0, < 8.0"
    }
    # Flex template jobs are in this one only.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 6.0, < 8.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

provider "google-beta" {
  project = var.project
  region  = var.region
}
