locals {
  internal_app = var.deploy_app && !var.public_endpoint ? 1 : 0
  own_tokens   = lower(lookup(var.app_settings, "API_TOKENS", "")) == "true"

  # The server's settings, named as in docs/settings.md. Its secrets are in the Key Vault.
  settings = merge(
    {
      COMPUTE_BACKEND                  = "batch"
      BATCH_ACCOUNT_NAME               = azurerm_batch_account.this.name
      BATCH_ACCOUNT_URL                = "https://${azurerm_batch_account.this.account_endpoint}"
      BATCH_RESOURCE_GROUP             = local.group
      AZURE_SUBSCRIPTION_ID            = var.subscription_id
      FILETRANSFER_CONTAINER_IMAGE     = local.runner_image
      PRIVATE_DOCKER_REGISTRY_URL      = local.registry_server
      PRIVATE_DOCKER_REGISTRY_USERNAME = local.registry_user
      STORAGE_ACCOUNT_NAME             = azurerm_storage_account.this.name
      CROMWELL_STORAGE_CONTAINER_NAME  = azurerm_storage_container.this["cromwell"].name
      DATABASE_URL                     = "postgresql://${azurerm_user_assigned_identity.api.name}@${azurerm_postgresql_flexible_server.this.fqdn}/${azurerm_postgresql_flexible_server_database.this.name}"
      DATABASE_AUTH                    = "entra"
      KEYVAULT_URL                     = azurerm_key_vault.this.vault_uri
      AZURE_IDENTITY                   = "default"
      AZURE_CLIENT_ID                  = azurerm_user_assigned_identity.api.client_id
    },
    var.shared_global_gb > 0 ? { BATCH_FILE_SHARE = azurerm_storage_share.shared_global[0].name } : {},
    var.private_network ? {
      BATCH_SUBNET_ID        = azurerm_subnet.nodes[0].id
      BATCH_PUBLIC_ADDRESSES = "false"
    } : {},
    var.aad_audience != "" ? {
      AAD_VERIFY    = "true"
      AAD_AUDIENCE  = var.aad_audience
      AAD_TENANT_ID = coalesce(var.aad_tenant_id, data.azurerm_client_config.current.tenant_id)
    } : {},
    var.aad_audience != "" || local.own_tokens ? { TASK_ACCESS_RESTRICTIONS = var.task_access_restrictions } : {},
    var.app_settings,
  )
}

resource "azurerm_container_app_environment" "this" {
  count                          = var.deploy_app ? 1 : 0
  name                           = var.name
  resource_group_name            = local.group
  location                       = local.location
  logs_destination               = "log-analytics"
  log_analytics_workspace_id     = azurerm_log_analytics_workspace.this.id
  infrastructure_subnet_id       = one(azurerm_subnet.app[*].id)
  internal_load_balancer_enabled = var.private_network ? !var.public_endpoint : null
  tags                           = var.tags

  workload_profile {
    name                  = "Consumption"
    workload_profile_type = "Consumption"
  }

  lifecycle {
    # Azure names it, and azurerm would make the environment anew for that (its issue 31839).
    ignore_changes = [infrastructure_resource_group_name]
  }
}

resource "azurerm_container_app" "api" {
  count                        = var.deploy_app ? 1 : 0
  name                         = "${var.name}-api"
  resource_group_name          = local.group
  container_app_environment_id = azurerm_container_app_environment.this[0].id
  workload_profile_name        = "Consumption"
  tags                         = var.tags

  # The old revision answers until the new one does. If that has changed the database's schema, the old
  # one writes nothing from then on (docs/terraform.md, Upgrade and rollback).
  revision_mode = "Single"

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.api.id]
  }

  registry {
    server               = local.registry_server
    identity             = local.own_registry ? azurerm_user_assigned_identity.api.id : null
    username             = local.own_registry ? null : var.acr_login_username
    password_secret_name = local.own_registry ? null : "registry-password"
  }

  dynamic "secret" {
    for_each = azurerm_key_vault_secret.registry_password
    content {
      name                = "registry-password"
      key_vault_secret_id = secret.value.versionless_id
      identity            = azurerm_user_assigned_identity.api.id
    }
  }

  ingress {
    external_enabled           = true # within the environment's own reach, see public_endpoint
    target_port                = 8000
    transport                  = "auto"
    allow_insecure_connections = false

    dynamic "ip_security_restriction" {
      for_each = var.allowed_ip_ranges
      content {
        name             = "allowed-${ip_security_restriction.key}"
        action           = "Allow"
        ip_address_range = ip_security_restriction.value
      }
    }

    traffic_weight {
      latest_revision = true
      percentage      = 100
    }
  }

  template {
    min_replicas                     = var.min_replicas
    max_replicas                     = var.max_replicas
    termination_grace_period_seconds = 60

    http_scale_rule {
      name                = "requests"
      concurrent_requests = "100"
    }

    container {
      name   = "api"
      image  = local.api_image
      cpu    = var.cpu
      memory = "${var.cpu * 2}Gi"

      dynamic "env" {
        for_each = local.settings
        content {
          name  = "APP_${env.key}"
          value = env.value
        }
      }
      env {
        name  = "APPLICATIONINSIGHTS_CONNECTION_STRING"
        value = azurerm_application_insights.this.connection_string
      }

      # All ask whether the process answers, also the readiness probe: were it /readyz, a Batch account
      # that is away would hide the tasks' states, and /readyz itself, which says what is missing.
      # The first one waits longest, as a start may have to change the database's schema.
      startup_probe {
        transport               = "HTTP"
        port                    = 8000
        path                    = "/healthz"
        initial_delay           = 10
        interval_seconds        = 30
        timeout                 = 5
        failure_count_threshold = 10
      }
      liveness_probe {
        transport               = "HTTP"
        port                    = 8000
        path                    = "/healthz"
        interval_seconds        = 10
        timeout                 = 5
        failure_count_threshold = 6
      }
      readiness_probe {
        transport               = "HTTP"
        port                    = 8000
        path                    = "/healthz"
        interval_seconds        = 5
        timeout                 = 5
        failure_count_threshold = 3
      }
    }
  }

  # What the server asks for in its first seconds.
  depends_on = [
    azurerm_key_vault_secret.secrets_key,
    azurerm_key_vault_secret.storage_key,
    azurerm_postgresql_flexible_server_active_directory_administrator.api,
    azurerm_postgresql_flexible_server_firewall_rule.azure,
    azurerm_private_endpoint.this,
    azurerm_role_assignment.built_in,
    azurerm_role_assignment.own,
    azurerm_subnet_nat_gateway_association.nodes,
  ]
}
