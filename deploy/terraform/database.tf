resource "azurerm_postgresql_flexible_server" "this" {
  #checkov:skip=CKV_AZURE_136: backups in a second region are a choice of price; tasks are bound to this region anyway
  #checkov:skip=CKV2_AZURE_57: there is a private endpoint with private_network, made by for_each, which checkov does not follow
  name                          = local.unique
  resource_group_name           = local.group
  location                      = local.location
  version                       = "17"
  sku_name                      = var.postgres_sku
  storage_mb                    = var.postgres_storage_mb
  auto_grow_enabled             = true
  backup_retention_days         = var.backup_retention_days
  public_network_access_enabled = !var.private_network
  tags                          = var.tags

  # There is no password anywhere: the server signs in as its identity.
  authentication {
    active_directory_auth_enabled = true
    password_auth_enabled         = false
    tenant_id                     = data.azurerm_client_config.current.tenant_id
  }

  dynamic "high_availability" {
    for_each = var.postgres_high_availability ? [1] : []
    content {
      mode = "ZoneRedundant"
    }
  }

  lifecycle {
    # Azure chooses the zones, and exchanges them at a failover. The disk grows by itself: to make it
    # smaller again, azurerm would make a new, empty server.
    ignore_changes = [zone, high_availability[0].standby_availability_zone, storage_mb, storage_tier]
  }
}

# An administrator of its own server: it makes and changes its tables. Lesser roles can only be made
# in SQL, by an administrator.
resource "azurerm_postgresql_flexible_server_active_directory_administrator" "api" {
  server_name         = azurerm_postgresql_flexible_server.this.name
  resource_group_name = local.group
  tenant_id           = data.azurerm_client_config.current.tenant_id
  object_id           = azurerm_user_assigned_identity.api.principal_id
  principal_name      = azurerm_user_assigned_identity.api.name
  principal_type      = "ServicePrincipal"
}

resource "azurerm_postgresql_flexible_server_database" "this" {
  name      = "tesazure"
  server_id = azurerm_postgresql_flexible_server.this.id
  collation = "en_US.utf8"
  charset   = "UTF8"

  # Its owner is the administrator who is there when it is made; without one, nobody can use it
  # (azurerm's issue 27895).
  depends_on = [azurerm_postgresql_flexible_server_active_directory_administrator.api]
}

# Container Apps without a network of their own call from addresses that change. This rule lets in all
# of Azure, other customers' too, up to the sign-in; private_network = true does without.
resource "azurerm_postgresql_flexible_server_firewall_rule" "azure" {
  #checkov:skip=CKV2_AZURE_26: what the comment above says; it is not there with private_network
  count            = var.private_network ? 0 : 1
  name             = "azure-services"
  server_id        = azurerm_postgresql_flexible_server.this.id
  start_ip_address = "0.0.0.0"
  end_ip_address   = "0.0.0.0"
}
