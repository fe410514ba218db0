# What Azure would tell of what was made, in its forms.

mock_data "azurerm_client_config" {
  defaults = {
    tenant_id = "72f988bf-86f1-41af-91ab-2d7cd011db47"
    object_id = "5c4a9f2e-5c0e-4f6f-9a52-9d1d2f7b0a11"
  }
}

mock_resource "azurerm_user_assigned_identity" {
  defaults = {
    id           = "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/tesazure/providers/Microsoft.ManagedIdentity/userAssignedIdentities/tesazure-api"
    client_id    = "3d2f0c5e-8f0a-4a43-9c66-4f3b8a7de2f0"
    principal_id = "f1b0c2d4-0b7e-4b51-8f4f-6f4d9f1f3c55"
  }
}

mock_resource "azurerm_batch_account" {
  defaults = {
    account_endpoint = "tesazure5d3c8f1a.westeurope.batch.azure.com"
  }
}

mock_resource "azurerm_container_registry" {
  defaults = {
    login_server = "tesazure5d3c8f1a.azurecr.io"
  }
}

mock_resource "azurerm_postgresql_flexible_server" {
  defaults = {
    fqdn = "tesazure5d3c8f1a.postgres.database.azure.com"
  }
}

mock_resource "azurerm_key_vault" {
  defaults = {
    vault_uri = "https://tesazure5d3c8f1a.vault.azure.net/"
  }
}

mock_resource "azurerm_storage_account" {
  defaults = {
    primary_access_key = "c3RhdGU="
  }
}

mock_resource "azurerm_application_insights" {
  defaults = {
    connection_string = "InstrumentationKey=6f1b4f1c-3c8c-4f0a-8f46-0c9d4a2d7f10;IngestionEndpoint=https://westeurope-5.in.applicationinsights.azure.com/"
  }
}

mock_resource "azurerm_container_app_environment" {
  defaults = {
    default_domain    = "happysea-0a1b2c3d.westeurope.azurecontainerapps.io"
    static_ip_address = "10.64.0.10"
  }
}

mock_resource "azurerm_container_app" {
  defaults = {
    ingress = {
      fqdn = "tesazure-api.happysea-0a1b2c3d.westeurope.azurecontainerapps.io"
    }
  }
}

mock_resource "azurerm_subnet" {
  defaults = {
    id = "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/tesazure/providers/Microsoft.Network/virtualNetworks/tesazure-network/subnets/nodes"
  }
}

mock_resource "azurerm_private_endpoint" {
  defaults = {
    private_service_connection = {
      private_ip_address = "10.64.2.4"
    }
  }
}
