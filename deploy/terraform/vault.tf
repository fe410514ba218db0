resource "azurerm_key_vault" "this" {
  #checkov:skip=CKV_AZURE_109: the firewall is on with private_network; without, Container Apps call from addresses that change
  #checkov:skip=CKV_AZURE_189: as CKV_AZURE_109; sign-in and role are asked for in any case
  #checkov:skip=CKV2_AZURE_32: there is a private endpoint with private_network, made by for_each, which checkov does not follow
  name                          = local.unique
  resource_group_name           = local.group
  location                      = local.location
  tenant_id                     = data.azurerm_client_config.current.tenant_id
  sku_name                      = "standard"
  rbac_authorization_enabled    = true
  purge_protection_enabled      = true
  soft_delete_retention_days    = 90
  public_network_access_enabled = local.reached_from_outside
  tags                          = var.tags

  network_acls {
    default_action = var.private_network ? "Deny" : "Allow"
    bypass         = "AzureServices"
    ip_rules       = var.private_network ? local.deployer_ranges : []
  }
}

# Who deploys first writes the secrets below, and the one of next_steps. Others who deploy get the role
# from an owner: it must not pass to and fro between them.
resource "azurerm_role_assignment" "deployer_writes_secrets" {
  role_definition_name = "Key Vault Secrets Officer"
  scope                = azurerm_key_vault.this.id
  principal_id         = data.azurerm_client_config.current.object_id

  lifecycle {
    ignore_changes = [principal_id]
  }
}

# The key that seals what is secret in submitted URLs: 32 bytes in base64, of two random UUIDs. A
# write-only argument is in neither plan nor state, and is sent when its version changes: so Terraform
# draws it once and never knows it again. Never change the version: what was sealed could not be read.
resource "azurerm_key_vault_secret" "secrets_key" {
  #checkov:skip=CKV_AZURE_41: a key that ended by itself would take the sealed URLs of all tasks with it
  name             = "TESAZURE-SECRETS-KEY"
  key_vault_id     = azurerm_key_vault.this.id
  content_type     = "base64"
  value_wo         = base64sha256("${uuid()}${uuid()}")
  value_wo_version = 1
  depends_on       = [azurerm_role_assignment.deployer_writes_secrets]
}

# Batch mounts the share with an account key. azurerm keeps an account's keys in the state whether or
# not they are used, which is why the state belongs into a place of its own (backend.tf.example).
resource "azurerm_key_vault_secret" "storage_key" {
  #checkov:skip=CKV_AZURE_41: the account's key does not end by itself
  count            = var.shared_global_gb > 0 ? 1 : 0
  name             = "TESAZURE-STORAGE-ACCOUNT-KEY"
  key_vault_id     = azurerm_key_vault.this.id
  content_type     = "base64"
  value_wo         = azurerm_storage_account.this.primary_access_key
  value_wo_version = 1
  depends_on       = [azurerm_role_assignment.deployer_writes_secrets]
}

resource "azurerm_key_vault_secret" "registry_password" {
  #checkov:skip=CKV_AZURE_41: how long the registry's password is good for, only its giver knows
  count            = local.own_registry ? 0 : 1
  name             = "TESAZURE-PRIVATE-DOCKER-REGISTRY-PASSWORD"
  key_vault_id     = azurerm_key_vault.this.id
  content_type     = "text/plain"
  value_wo         = var.acr_login_password
  value_wo_version = var.acr_login_password_version
  depends_on       = [azurerm_role_assignment.deployer_writes_secrets]
}
