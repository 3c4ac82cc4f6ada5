# The rights in rights.json, by the kind of resource that they are on. Needs no provider, so that a test can evaluate it.

variable "bucket" {
  description = "Name of the bucket, without gs://."
  type        = string
}

locals {
  file    = jsondecode(file("${path.module}/rights.json"))
  objects = "projects/_/buckets/${var.bucket}/objects/"
  rights = {
    for right in local.file.rights : join(" ", concat(
      [right.account, replace(right.role, "roles/", ""), "on", right.on],
      try(right.folders, []),
      )) => {
      account = right.account
      role    = right.role
      kind    = split(":", right.on)[0]
      name    = try(split(":", right.on)[1], "")
      # A listing belongs to the bucket, so its resource name has no folder: the prefix that it asks for decides.
      condition = !can(right.folders) ? "" : join(" && ", concat(
        [format("(%s)", join(" || ", concat(
          [for folder in right.folders : "resource.name.startsWith('${local.objects}${folder}/')"],
          [for file in try(right.files, []) : "resource.name == '${local.objects}${file}'"],
          [for folder in right.folders : "api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('${folder}/')"],
        )))],
        [for file in try(right.except, []) : "resource.name != '${local.objects}${file}'"],
      ))
    }
  }
}

output "accounts" {
  description = "What each account does, by name."
  value       = local.file.accounts
}

output "custom_roles" {
  description = "Title and permissions of the roles that Google does not have, by name."
  value       = local.file.custom_roles
}

output "on" {
  description = "The rights by kind of resource, then by a name that is unique."
  value = {
    for kind in ["project", "bucket", "dataset", "topic", "subscription", "images", "account"] :
    kind => { for key, right in local.rights : key => right if right.kind == kind }
  }
}
