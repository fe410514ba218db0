data "azurerm_client_config" "current" {}

locals {
  # Names that are unique in all of Azure follow from where this is deployed, so they stay the same
  # without a random number in the state.
  suffix   = substr(sha1(lower("${var.subscription_id}/${var.resource_group_name}")), 0, 8)
  unique   = "${var.name}${local.suffix}"
  location = azurerm_resource_group.this.location
  group    = azurerm_resource_group.this.name
}

resource "azurerm_resource_group" "this" {
  name     = var.resource_group_name
  location = var.resource_group_location
  tags     = var.tags
}

# ------------------------------------------------------------------------- who the server is

resource "azurerm_user_assigned_identity" "api" {
  name                = "${var.name}-api"
  resource_group_name = local.group
  location            = local.location
  tags                = var.tags
}

# The least that the backend needs, see docs/batch.md. Batch has pools as resources of its account
# (actions) and jobs, tasks included, as data.
resource "azurerm_role_definition" "batch" {
  name        = "${local.unique} Batch user"
  scope       = azurerm_resource_group.this.id
  description = "What a tesazure server does in a Batch account."
  permissions {
    actions = [
      "Microsoft.Batch/batchAccounts/read",
      "Microsoft.Batch/batchAccounts/pools/read",
      "Microsoft.Batch/batchAccounts/pools/write",
      "Microsoft.Batch/batchAccounts/pools/delete",
    ]
    data_actions = [
      "Microsoft.Batch/batchAccounts/jobs/read",
      "Microsoft.Batch/batchAccounts/jobs/write",
      "Microsoft.Batch/batchAccounts/jobs/delete",
    ]
  }
}

# VM sizes and what they can are asked for a subscription and region, not for an account.
resource "azurerm_role_definition" "sizes" {
  name        = "${local.unique} VM size reader"
  scope       = "/subscriptions/${var.subscription_id}"
  description = "Reads which VM sizes a region has."
  permissions {
    actions = [
      "Microsoft.Batch/locations/virtualMachineSkus/read",
      "Microsoft.Compute/skus/read",
    ]
  }
}

resource "azurerm_role_definition" "subnet" {
  count       = var.private_network ? 1 : 0
  name        = "${local.unique} subnet user"
  scope       = azurerm_resource_group.this.id
  description = "Makes Batch pools in a subnet."
  permissions {
    actions = [
      "Microsoft.Network/virtualNetworks/subnets/read",
      "Microsoft.Network/virtualNetworks/subnets/join/action",
    ]
  }
}

locals {
  own_roles = merge(
    {
      batch = [azurerm_role_definition.batch.role_definition_resource_id, azurerm_batch_account.this.id]
      sizes = [azurerm_role_definition.sizes.role_definition_resource_id, "/subscriptions/${var.subscription_id}"]
    },
    var.private_network ? {
      subnet = [azurerm_role_definition.subnet[0].role_definition_resource_id, azurerm_subnet.nodes[0].id]
    } : {},
  )
  built_in_roles = merge(
    {
      # The delegator lets it sign URLs for nodes without an account key.
      delegator = ["Storage Blob Delegator", azurerm_storage_account.this.id]
      blobs     = ["Storage Blob Data Contributor", azurerm_storage_account.this.id]
      secrets   = ["Key Vault Secrets User", azurerm_key_vault.this.id]
    },
    local.own_registry ? { pull = ["AcrPull", azurerm_container_registry.this[0].id] } : {},
  )
}

resource "azurerm_role_assignment" "own" {
  for_each           = local.own_roles
  role_definition_id = each.value[0]
  scope              = each.value[1]
  principal_id       = azurerm_user_assigned_identity.api.principal_id
  principal_type     = "ServicePrincipal"
}

resource "azurerm_role_assignment" "built_in" {
  for_each             = local.built_in_roles
  role_definition_name = each.value[0]
  scope                = each.value[1]
  principal_id         = azurerm_user_assigned_identity.api.principal_id
  principal_type       = "ServicePrincipal"
}
