# A deployment that sets only what must be set: what its images go to first, then the server.

mock_provider "azurerm" {
  source = "./tests/azure"
}

variables {
  subscription_id = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
  image_tag       = "0.1.0"
  aad_audience    = "0f2d6e1c-4f5e-4c5f-8a07-3f8d5a6b7c81"
  # Terraform's test wants ephemeral variables to be set.
  acr_login_password = ""
}

run "images" {
  command = apply
  variables {
    deploy_app = false
  }

  assert {
    condition     = length(azurerm_container_app.api) == 0 && output.app_service_default_hostname == ""
    error_message = "the server comes after its images"
  }
  assert {
    condition     = length(azurerm_container_registry.this) == 1
    error_message = "where the images go"
  }
}

run "default" {
  command = apply

  assert {
    condition     = output.app_service_default_hostname == "https://tesazure-api.happysea-0a1b2c3d.westeurope.azurecontainerapps.io"
    error_message = "the URL is the app's"
  }
  assert {
    condition     = output.resource_group == "tesazure"
    error_message = "the resource group's default name"
  }
  assert {
    condition     = can(regex("^tesazure[0-9a-f]{8}$", azurerm_storage_account.this.name)) && azurerm_storage_account.this.name == azurerm_key_vault.this.name
    error_message = "names that are unique in Azure end in eight characters that follow from the place"
  }
  assert {
    condition     = azurerm_container_app.api[0].template[0].min_replicas >= 1
    error_message = "somebody must watch tasks"
  }
  assert {
    condition     = alltrue([for secret in azurerm_container_app.api[0].secret : secret.value == null])
    error_message = "the app has no secrets of its own: they are in the Key Vault"
  }
  assert {
    condition     = azurerm_postgresql_flexible_server.this.authentication[0].password_auth_enabled == false && azurerm_postgresql_flexible_server.this.administrator_password == null
    error_message = "the database has no password"
  }
  assert {
    condition     = azurerm_batch_account.this.allowed_authentication_modes == toset(["AAD"])
    error_message = "the Batch account takes no keys"
  }
  assert {
    condition     = azurerm_container_registry.this[0].admin_enabled == false
    error_message = "the registry has no administrator's password"
  }
  assert {
    condition     = azurerm_key_vault.this.rbac_authorization_enabled && azurerm_key_vault.this.purge_protection_enabled
    error_message = "the vault goes by roles, and nobody deletes it for good"
  }
  assert {
    condition     = alltrue([for container in azurerm_storage_container.this : container.container_access_type == "private"])
    error_message = "nobody reads files without a right"
  }
  assert {
    condition     = toset(keys(azurerm_storage_container.this)) == toset(["batchtmp", "cromwell", "inputs", "outputs"])
    error_message = "the containers that the server and its users need"
  }
  assert {
    condition     = toset([for role in azurerm_role_assignment.built_in : role.role_definition_name]) == toset(["AcrPull", "Key Vault Secrets User", "Storage Blob Data Contributor", "Storage Blob Delegator"])
    error_message = "the roles of the server, and no other"
  }
  assert {
    condition     = length(azurerm_virtual_network.this) == 0 && length(azurerm_private_endpoint.this) == 0 && length(azurerm_consumption_budget_resource_group.this) == 0
    error_message = "no network and no budget unless asked for"
  }
}

# Nothing changes by itself, such as the key that seals, which uuid() drew: the test that runs this
# looks into the plan.
run "again" {
  command = plan
}

# Nor when somebody else deploys.
run "somebody_else" {
  command = plan
  override_data {
    target = data.azurerm_client_config.current
    values = {
      tenant_id = "72f988bf-86f1-41af-91ab-2d7cd011db47"
      object_id = "9d0c7b7e-3c5e-4a0b-8f1e-6a2b4c8d0e12"
    }
  }
}

run "own_tokens" {
  command = plan
  variables {
    aad_audience     = ""
    app_settings     = { API_TOKENS = "true", DATABASE_URL = "postgresql://tesazure-api@restored.postgres.database.azure.com/tesazure" }
    shared_global_gb = 6000
  }

  assert {
    condition = {
      for env in azurerm_container_app.api[0].template[0].container[0].env : env.name => env.value
      if contains(["APP_AAD_VERIFY", "APP_DATABASE_URL", "APP_TASK_ACCESS_RESTRICTIONS"], env.name)
      } == {
      APP_DATABASE_URL             = "postgresql://tesazure-api@restored.postgres.database.azure.com/tesazure"
      APP_TASK_ACCESS_RESTRICTIONS = "per-user"
    }
    error_message = "owners of tokens see their own tasks, in the database that is asked for"
  }
  assert {
    condition     = azurerm_storage_account.this.large_file_share_enabled
    error_message = "a share above 5 TiB needs it"
  }
}
