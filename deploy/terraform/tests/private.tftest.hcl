# A deployment that is reached through its own network, with an existing registry and a budget.

mock_provider "azurerm" {
  source = "./tests/azure"
}

variables {
  subscription_id    = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
  image_tag          = "sha256:8b1a9953c4611296a827abf8c47804d7f0c1f1e2a5a9d3d1e8f0a7b6c5d4e3f2"
  runner_image_tag   = "0.1.0"
  aad_audience       = "0f2d6e1c-4f5e-4c5f-8a07-3f8d5a6b7c81"
  acr_login_server   = "ours.azurecr.io"
  acr_login_username = "puller"
  acr_login_password = "not-a-real-password"
  private_network    = true
  public_endpoint    = false
  allowed_ip_ranges  = ["10.0.0.0/8"]
  budget_amount      = 500
  budget_emails      = ["ops@example.org"]
  app_settings       = { BATCH_SPOT = "true" }
}

run "private" {
  command = apply

  assert {
    condition = alltrue([
      azurerm_storage_account.this.public_network_access_enabled == false,
      azurerm_key_vault.this.public_network_access_enabled == false,
      azurerm_batch_account.this.public_network_access_enabled == false,
      azurerm_postgresql_flexible_server.this.public_network_access_enabled == false,
      azurerm_container_app_environment.this[0].internal_load_balancer_enabled,
      length(azurerm_postgresql_flexible_server_firewall_rule.azure) == 0,
    ])
    error_message = "nothing is reached from outside"
  }
  assert {
    condition     = toset(keys(azurerm_private_endpoint.this)) == toset(["batch", "blob", "database", "nodes", "share", "vault"])
    error_message = "what the server and nodes use has an endpoint"
  }
  assert {
    condition     = length(azurerm_private_dns_zone.this) == 5 && length(azurerm_private_dns_zone_virtual_network_link.this) == 5
    error_message = "each kind of endpoint has a name in the network; Batch's two share a zone"
  }
  assert {
    condition     = azurerm_private_dns_a_record.app[0].records == toset(["10.64.0.10"])
    error_message = "the server has a name in the network"
  }
  assert {
    condition     = [azurerm_subnet.app[0].address_prefixes[0], azurerm_subnet.endpoints[0].address_prefixes[0], azurerm_subnet.nodes[0].address_prefixes[0]] == ["10.64.0.0/23", "10.64.2.0/24", "10.64.128.0/17"]
    error_message = "subnets beside each other, the largest for nodes"
  }
  assert {
    condition     = toset([for rule in azurerm_network_security_group.endpoints[0].security_rule : rule.name if rule.access == "Deny" && rule.source_address_prefix == "10.64.128.0/17"]) == toset(["no-database-for-nodes", "no-vault-for-nodes"])
    error_message = "tasks reach neither database nor secrets"
  }
  assert {
    condition     = length(azurerm_container_registry.this) == 0 && azurerm_container_app.api[0].template[0].container[0].image == "ours.azurecr.io/tesazure/api@sha256:8b1a9953c4611296a827abf8c47804d7f0c1f1e2a5a9d3d1e8f0a7b6c5d4e3f2"
    error_message = "the existing registry is used"
  }
  assert {
    condition     = alltrue([for registry in azurerm_container_app.api[0].registry : registry.username == "puller" && registry.password_secret_name == "registry-password" && registry.identity == null])
    error_message = "the app pulls as the given user"
  }
  assert {
    condition     = alltrue([for secret in azurerm_container_app.api[0].secret : secret.name == "registry-password" && secret.value == null && secret.key_vault_secret_id == azurerm_key_vault_secret.registry_password[0].versionless_id])
    error_message = "the password is in the vault, and only there"
  }
  assert {
    condition     = toset([for role in azurerm_role_assignment.built_in : role.role_definition_name]) == toset(["Key Vault Secrets User", "Storage Blob Data Contributor", "Storage Blob Delegator"])
    error_message = "no right on a registry of ours"
  }
  assert {
    condition     = { for note in azurerm_consumption_budget_resource_group.this[0].notification : note.threshold_type => note.threshold } == { Actual = 80, Forecasted = 100 }
    error_message = "mails when the budget is nearly spent"
  }
  assert {
    condition     = [for rule in azurerm_container_app.api[0].ingress[0].ip_security_restriction : rule.ip_address_range] == ["10.0.0.0/8"]
    error_message = "who may call"
  }
}

run "own_registry_with_deployer" {
  command = plan
  variables {
    acr_login_server   = ""
    acr_login_username = ""
    acr_login_password = ""
    public_endpoint    = true
    deployer_ip_ranges = ["203.0.113.7", "198.51.100.0/24"]
    shared_global_gb   = 0
  }

  assert {
    condition     = azurerm_container_registry.this[0].sku == "Premium" && azurerm_container_registry.this[0].public_network_access_enabled && azurerm_key_vault.this.public_network_access_enabled
    error_message = "who deploys gets in"
  }
  assert {
    condition     = azurerm_key_vault.this.network_acls[0].default_action == "Deny" && azurerm_key_vault.this.network_acls[0].ip_rules == toset(["203.0.113.7/32", "198.51.100.0/24"])
    error_message = "and nobody else"
  }
  assert {
    condition     = alltrue([for rules in azurerm_container_registry.this[0].network_rule_set : rules.default_action == "Deny" && toset(rules.ip_rule[*].ip_range) == toset(["203.0.113.7/32", "198.51.100.0/24"])])
    error_message = "nor to the registry"
  }
  assert {
    condition     = toset(keys(azurerm_private_endpoint.this)) == toset(["batch", "blob", "database", "nodes", "registry", "vault"])
    error_message = "an endpoint for the registry, none for a share that is not there"
  }
  assert {
    condition     = !azurerm_storage_account.this.shared_access_key_enabled && length(azurerm_key_vault_secret.storage_key) == 0
    error_message = "without a share, keys open nothing"
  }
  assert {
    condition     = !azurerm_container_app_environment.this[0].internal_load_balancer_enabled && length(azurerm_private_dns_zone.app) == 0
    error_message = "the server itself is reached from outside"
  }
}
