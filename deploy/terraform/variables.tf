# ---------------------------------------------------------------- where, and what it is called

variable "subscription_id" {
  description = "Id of the subscription to deploy into, as `az account show --query id` prints it."
  type        = string
  validation {
    condition     = can(regex("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", var.subscription_id))
    error_message = "subscription_id must be a GUID, as `az account show --query id` prints it."
  }
}

variable "resource_group_name" {
  description = "Resource group to make; everything lies in it."
  type        = string
  default     = "tesazure"
  validation {
    condition     = can(regex("^[A-Za-z0-9._()-]{0,89}[A-Za-z0-9_()-]$", var.resource_group_name))
    error_message = "resource_group_name must be 1 to 90 letters, digits and ._()- and not end in a dot."
  }
}

variable "resource_group_location" {
  description = "Azure region of everything, such as westeurope; one that has Container Apps and Batch."
  type        = string
  default     = "westeurope"
  validation {
    condition     = can(regex("^[a-z][a-z0-9]+$", var.resource_group_location))
    error_message = "resource_group_location must be a region's short name, such as westeurope."
  }
}

variable "name" {
  description = "What names begin with. Those that must be unique in Azure end in eight more characters."
  type        = string
  default     = "tesazure"
  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,14}$", var.name))
    error_message = "name must be 2 to 15 lower-case letters and digits and begin with a letter."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}

# ------------------------------------------------------------------------------------- images

variable "image_tag" {
  description = "Tag or digest (sha256:…) of the image tesazure/api in the registry; never latest."
  type        = string
  validation {
    condition     = can(regex("^(sha256:[0-9a-f]{64}|[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})$", var.image_tag)) && var.image_tag != "latest"
    error_message = "image_tag must be a tag other than latest, or a digest (sha256:…): a restart must not change the program."
  }
}

variable "runner_image_tag" {
  description = "The same of tesazure/container-filetransfer; empty: as image_tag."
  type        = string
  default     = ""
  validation {
    condition     = var.runner_image_tag == "" ? !startswith(var.image_tag, "sha256:") : can(regex("^(sha256:[0-9a-f]{64}|[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})$", var.runner_image_tag)) && var.runner_image_tag != "latest"
    error_message = "runner_image_tag must be a tag other than latest, or a digest (sha256:…); it is needed where image_tag is a digest."
  }
}

variable "deploy_app" {
  description = "Whether to make the server itself. The first apply makes the registry, with false; then come the images."
  type        = bool
  default     = true
}

variable "acr_login_server" {
  description = "Host of an existing registry with both images, such as yourname.azurecr.io; empty: a new one is made."
  type        = string
  default     = ""
  validation {
    condition     = can(regex("^$|^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]+)?$", var.acr_login_server))
    error_message = "acr_login_server must be a host, without https:// and path."
  }
}

variable "acr_login_username" {
  description = "User to pull from the existing registry as."
  type        = string
  default     = ""
  validation {
    condition     = (var.acr_login_username == "") == (var.acr_login_server == "")
    error_message = "acr_login_username goes with acr_login_server: set both, or neither to have a registry made."
  }
}

variable "acr_login_password" {
  description = "That user's password, best as TF_VAR_acr_login_password. It goes into the Key Vault, not into the state."
  type        = string
  default     = ""
  sensitive   = true
  ephemeral   = true
  validation {
    condition     = (var.acr_login_password == "") == (var.acr_login_server == "")
    error_message = "acr_login_password goes with acr_login_server: set both, or neither to have a registry made."
  }
}

variable "acr_login_password_version" {
  description = "Count it up when acr_login_password has changed: Terraform keeps no secret to compare it with."
  type        = number
  default     = 1
  validation {
    condition     = var.acr_login_password_version >= 1 && floor(var.acr_login_password_version) == var.acr_login_password_version
    error_message = "acr_login_password_version must be a whole number, at least 1."
  }
}

# ----------------------------------------------------------------------------- who may call it

variable "aad_audience" {
  description = "AAD_AUDIENCE: client id of the API's app registration. Callers then sign in with Entra ID."
  type        = string
  default     = ""
  validation {
    condition     = var.aad_audience != "" || local.own_tokens || var.allow_anonymous
    error_message = "aad_audience is missing: without sign-in everybody who reaches the server can run programs at your cost. Set it, or API_TOKENS = \"true\" in app_settings, or allow_anonymous."
  }
}

variable "aad_tenant_id" {
  description = "AAD_TENANT_ID: tenant whose users may sign in; empty: the one that is deployed into."
  type        = string
  default     = ""
}

variable "allow_anonymous" {
  description = "Whether the server may be without sign-in."
  type        = bool
  default     = false
}

variable "task_access_restrictions" {
  description = "TASK_ACCESS_RESTRICTIONS: whose tasks a caller sees: none (everybody's), per-user or per-tenant."
  type        = string
  default     = "per-user"
  validation {
    condition     = contains(["none", "per-user", "per-tenant"], var.task_access_restrictions)
    error_message = "task_access_restrictions must be none, per-user or per-tenant."
  }
}

variable "allowed_ip_ranges" {
  description = "Addresses (CIDR) that may call the server; empty: all that reach it."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for range in var.allowed_ip_ranges : can(cidrnetmask(range))])
    error_message = "allowed_ip_ranges must be IPv4 ranges such as 203.0.113.0/24."
  }
}

# -------------------------------------------------------------------------------------- network

variable "private_network" {
  description = "Whether database, storage, Batch, registry and Key Vault are reached through a virtual network of their own alone."
  type        = bool
  default     = false
}

variable "public_endpoint" {
  description = "Whether the server is reached from the Internet; false: from the virtual network alone."
  type        = bool
  default     = true
  validation {
    condition     = var.public_endpoint || var.private_network
    error_message = "public_endpoint = false needs private_network = true: from where else would the server be reached?"
  }
}

variable "address_space" {
  description = "Addresses (CIDR, /16 to /20) of the virtual network."
  type        = string
  default     = "10.64.0.0/16"
  validation {
    condition     = can(cidrnetmask(var.address_space)) && can(regex("/(1[6-9]|20)$", var.address_space))
    error_message = "address_space must be an IPv4 range with a prefix of /16 to /20."
  }
}

variable "deployer_ip_ranges" {
  description = "With private_network: addresses (IPv4 or CIDR) of who deploys, which may reach Key Vault and registry from outside; empty: only from inside."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for range in var.deployer_ip_ranges : can(cidrnetmask(strcontains(range, "/") ? range : "${range}/32"))])
    error_message = "deployer_ip_ranges must be IPv4 addresses or ranges."
  }
}

# ------------------------------------------------------------------------------------ the server

variable "min_replicas" {
  description = "Servers that always run. At least 1: tasks are placed and watched by them."
  type        = number
  default     = 1
  validation {
    condition     = var.min_replicas >= 1 && var.min_replicas <= var.max_replicas
    error_message = "min_replicas must be at least 1, as tasks are placed and watched by the servers, and at most max_replicas."
  }
}

variable "max_replicas" {
  description = "Servers that run at most, when there are many requests."
  type        = number
  default     = 3
  validation {
    condition     = var.max_replicas <= 30
    error_message = "max_replicas must be at most 30."
  }
}

variable "cpu" {
  description = "Cores of a server, in steps of 0.25; it has 2 GiB of memory for each."
  type        = number
  default     = 1
  validation {
    condition     = contains([0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4], var.cpu)
    error_message = "cpu must be 0.5 to 4, in steps that Container Apps has."
  }
}

variable "app_settings" {
  description = "Further settings of the server (docs/settings.md), such as { BATCH_SPOT = \"true\" }; no secrets, which belong into the Key Vault."
  type        = map(string)
  default     = {}
  validation {
    condition     = alltrue([for name in keys(var.app_settings) : can(regex("^[A-Z][A-Z0-9_]+$", name))])
    error_message = "app_settings must be named as in docs/settings.md, without APP_."
  }
  validation {
    condition = length(setintersection(keys(var.app_settings), [
      "APPINSIGHTS_INSTRUMENTATIONKEY",
      "APPLICATIONINSIGHTS_CONNECTION_STRING",
      "AZURE_SECRET",
      "BATCH_ACCOUNT_KEY",
      "DRS_TOKENS",
      "OTLP_HEADERS",
      "PRIVATE_DOCKER_REGISTRY_PASSWORD",
      "PROVISION_TOKEN",
      "S3_SECRET_ACCESS_KEY",
      "S3_SESSION_TOKEN",
      "SECRETS_KEY",
      "STORAGE_ACCOUNT_KEY",
    ])) == 0
    error_message = "app_settings must hold no secrets: they would be readable in the state and in the portal. Put them into the Key Vault as TESAZURE-…"
  }
  validation {
    condition     = can(regex("^postgres(ql)?://[^:/@?]+@[^@?]+$", lookup(var.app_settings, "DATABASE_URL", "postgresql://role@host/name")))
    error_message = "app_settings may have a DATABASE_URL such as postgresql://role@host/name, with no password and no ?: DATABASE_AUTH is entra."
  }
}

# ------------------------------------------------------------------------------ database, storage

variable "postgres_sku" {
  description = "Size of the database server."
  type        = string
  default     = "B_Standard_B1ms"
  validation {
    condition     = can(regex("^(B|GP|MO)_Standard_[A-Za-z0-9_]+$", var.postgres_sku))
    error_message = "postgres_sku must be such as B_Standard_B1ms or GP_Standard_D2ds_v5."
  }
}

variable "postgres_storage_mb" {
  description = "Disk of the new database server in MiB. From then on it grows by itself, and this changes nothing."
  type        = number
  default     = 32768
  validation {
    condition     = contains([32768, 65536, 131072, 262144, 524288, 1048576], var.postgres_storage_mb)
    error_message = "postgres_storage_mb must be 32768, 65536, 131072, 262144, 524288 or 1048576."
  }
}

variable "postgres_high_availability" {
  description = "Whether a second database server stands by in another zone; not with a size that begins with B_."
  type        = bool
  default     = false
  validation {
    condition     = !var.postgres_high_availability || !startswith(var.postgres_sku, "B_")
    error_message = "postgres_high_availability needs a postgres_sku that begins with GP_ or MO_."
  }
}

variable "backup_retention_days" {
  description = "Days that the database can be restored to."
  type        = number
  default     = 14
  validation {
    condition     = var.backup_retention_days >= 7 && var.backup_retention_days <= 35
    error_message = "backup_retention_days must be 7 to 35."
  }
}

variable "storage_replication" {
  description = "Replication of the storage account: LRS, ZRS, GRS, GZRS."
  type        = string
  default     = "LRS"
  validation {
    condition     = contains(["LRS", "ZRS", "GRS", "GZRS"], var.storage_replication)
    error_message = "storage_replication must be LRS, ZRS, GRS or GZRS."
  }
}

variable "storage_containers" {
  description = "Containers for users' files, besides those that the server and Cromwell need."
  type        = set(string)
  default     = ["inputs", "outputs"]
  validation {
    condition     = alltrue([for name in var.storage_containers : can(regex("^[a-z0-9](-?[a-z0-9]){2,62}$", name)) && !contains(["batchtmp", "cromwell"], name)])
    error_message = "storage_containers must be 3 to 63 lower-case letters, digits and single dashes; batchtmp and cromwell are there already."
  }
}

variable "shared_global_gb" {
  description = "Size in GiB of the Azure Files share that all tasks see as /tes-wd/shared-global; 0: none, and the storage account refuses keys."
  type        = number
  default     = 100
  validation {
    condition     = var.shared_global_gb >= 0 && var.shared_global_gb <= 102400 && floor(var.shared_global_gb) == var.shared_global_gb
    error_message = "shared_global_gb must be a whole number, 0 to 102400."
  }
}

# ------------------------------------------------------------------------------------------ watch

variable "log_retention_days" {
  description = "Days that logs and telemetry are kept."
  type        = number
  default     = 30
  validation {
    condition     = contains([30, 60, 90, 120, 180, 270, 365, 550, 730], var.log_retention_days)
    error_message = "log_retention_days must be 30, 60, 90, 120, 180, 270, 365, 550 or 730, as Application Insights has it."
  }
}

variable "budget_amount" {
  description = "What the resource group may cost a month, in the currency of the subscription's bills; mails are sent at 80 and 100 %, nothing is stopped. 0: no budget."
  type        = number
  default     = 0
  validation {
    condition     = var.budget_amount >= 0
    error_message = "budget_amount must not be negative."
  }
}

variable "budget_emails" {
  description = "Who is told."
  type        = list(string)
  default     = []
  validation {
    condition     = (length(var.budget_emails) > 0) == (var.budget_amount > 0)
    error_message = "budget_emails goes with budget_amount: set both or neither."
  }
  validation {
    condition     = alltrue([for address in var.budget_emails : can(regex("^[^@ ]+@[^@ ]+$", address))])
    error_message = "budget_emails must be mail addresses."
  }
}
