resource "azurerm_storage_account" "this" {
  #checkov:skip=CKV_AZURE_33: there are no queues
  #checkov:skip=CKV2_AZURE_1: Microsoft's keys encrypt it; keys of one's own are a choice that needs their rotation
  #checkov:skip=CKV_AZURE_35: with private_network it is; for the rest as CKV_AZURE_59
  #checkov:skip=CKV_AZURE_59: public access is off with private_network; clients upload inputs from outside without it
  #checkov:skip=CKV_AZURE_206: replication is the deployer's choice (storage_replication)
  #checkov:skip=CKV2_AZURE_33: there are private endpoints with private_network, made by for_each, which checkov does not follow
  #checkov:skip=CKV2_AZURE_40: nodes mount the share with a key, as Batch mounts in no other way; with shared_global_gb = 0 keys are refused
  #checkov:skip=CKV2_AZURE_41: with keys, signatures are short-lived already (CREDENTIAL_HOURS, seven days at most)
  name                            = local.unique
  resource_group_name             = local.group
  location                        = local.location
  account_tier                    = "Standard"
  account_kind                    = "StorageV2"
  account_replication_type        = var.storage_replication
  min_tls_version                 = "TLS1_2"
  allow_nested_items_to_be_public = false
  local_user_enabled              = false
  default_to_oauth_authentication = true
  shared_access_key_enabled       = var.shared_global_gb > 0
  large_file_share_enabled        = var.shared_global_gb > 5120 ? true : null # for good
  public_network_access_enabled   = !var.private_network
  tags                            = var.tags

  blob_properties {
    delete_retention_policy {
      days = 7
    }
    container_delete_retention_policy {
      days = 7
    }
  }

  network_rules {
    default_action = var.private_network ? "Deny" : "Allow"
    bypass         = ["AzureServices"]
  }
}

resource "azurerm_storage_container" "this" {
  #checkov:skip=CKV2_AZURE_21: reads of blobs are logged where somebody wants to pay for them: a line for each request of each node
  # What the server and its nodes exchange, Cromwell's working files, and users' own.
  for_each              = setunion(["batchtmp", "cromwell"], var.storage_containers)
  name                  = each.value
  storage_account_id    = azurerm_storage_account.this.id
  container_access_type = "private"
}

resource "azurerm_storage_share" "shared_global" {
  count              = var.shared_global_gb > 0 ? 1 : 0
  name               = "shared-global"
  storage_account_id = azurerm_storage_account.this.id
  quota              = var.shared_global_gb
}
