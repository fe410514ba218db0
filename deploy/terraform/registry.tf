locals {
  own_registry    = var.acr_login_server == ""
  registry_server = local.own_registry ? azurerm_container_registry.this[0].login_server : var.acr_login_server
  registry_user   = local.own_registry ? azurerm_container_registry_token.nodes[0].name : var.acr_login_username

  api_image    = "${local.registry_server}/tesazure/api${startswith(var.image_tag, "sha256:") ? "@" : ":"}${var.image_tag}"
  runner_tag   = coalesce(var.runner_image_tag, var.image_tag)
  runner_image = "${local.registry_server}/tesazure/container-filetransfer${startswith(local.runner_tag, "sha256:") ? "@" : ":"}${local.runner_tag}"
}

resource "azurerm_container_registry" "this" {
  #checkov:skip=CKV_AZURE_163: scanning for vulnerabilities is Defender for Cloud's, which is switched on for a subscription
  #checkov:skip=CKV_AZURE_164: content trust is retired (Microsoft, "Transition from Docker Content Trust to Notary Project")
  #checkov:skip=CKV_AZURE_165: one region
  #checkov:skip=CKV_AZURE_166: quarantine needs a scanner that releases images, or nothing can be pulled
  #checkov:skip=CKV_AZURE_167: untagged images are kept, as deployments may name them by digest
  #checkov:skip=CKV_AZURE_233: the images can be built again; a zone's outage delays starts alone
  #checkov:skip=CKV_AZURE_237: dedicated data endpoints are for firewalls between registry and clients
  #checkov:skip=CKV_AZURE_139: public access is off with private_network, but for who deploys
  count                         = local.own_registry ? 1 : 0
  name                          = local.unique
  resource_group_name           = local.group
  location                      = local.location
  sku                           = var.private_network ? "Premium" : "Basic"
  admin_enabled                 = false
  public_network_access_enabled = local.reached_from_outside
  tags                          = var.tags

  network_rule_set = var.private_network ? [{
    default_action = "Deny"
    ip_rule        = [for range in local.deployer_ranges : { action = "Allow", ip_range = range }]
  }] : []
}

# Nodes of Batch pull with a token of the registry. Its password is made once by hand (output
# next_steps), so that it is not in the state.
resource "azurerm_container_registry_token" "nodes" {
  count                   = local.own_registry ? 1 : 0
  name                    = "nodes"
  container_registry_name = azurerm_container_registry.this[0].name
  resource_group_name     = local.group
  scope_map_id            = "${azurerm_container_registry.this[0].id}/scopeMaps/_repositories_pull"
}
