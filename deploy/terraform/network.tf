locals {
  reached_from_outside = !var.private_network || length(var.deployer_ip_ranges) > 0
  deployer_ranges      = [for range in var.deployer_ip_ranges : strcontains(range, "/") ? range : "${range}/32"]

  # What has a private endpoint: resource, its part, the DNS zone that leads there.
  endpoints = var.private_network ? merge(
    {
      blob     = [azurerm_storage_account.this.id, "blob", "privatelink.blob.core.windows.net"]
      vault    = [azurerm_key_vault.this.id, "vault", "privatelink.vaultcore.azure.net"]
      batch    = [azurerm_batch_account.this.id, "batchAccount", "privatelink.batch.azure.com"]
      nodes    = [azurerm_batch_account.this.id, "nodeManagement", "privatelink.batch.azure.com"]
      database = [azurerm_postgresql_flexible_server.this.id, "postgresqlServer", "privatelink.postgres.database.azure.com"]
    },
    var.shared_global_gb > 0 ? {
      share = [azurerm_storage_account.this.id, "file", "privatelink.file.core.windows.net"]
    } : {},
    local.own_registry ? {
      registry = [azurerm_container_registry.this[0].id, "registry", "privatelink.azurecr.io"]
    } : {},
  ) : {}

  prefix = tonumber(split("/", var.address_space)[1])
}

resource "azurerm_virtual_network" "this" {
  count               = var.private_network ? 1 : 0
  name                = "${var.name}-network"
  resource_group_name = local.group
  location            = local.location
  address_space       = [var.address_space]
  tags                = var.tags
}

resource "azurerm_subnet" "app" {
  #checkov:skip=CKV2_AZURE_31: Container Apps guards it; a group of ours would have to let the Internet in
  count                           = var.private_network ? 1 : 0
  name                            = "app"
  resource_group_name             = local.group
  virtual_network_name            = azurerm_virtual_network.this[0].name
  address_prefixes                = [cidrsubnet(var.address_space, 23 - local.prefix, 0)]
  default_outbound_access_enabled = false
  delegation {
    name = "container-apps"
    service_delegation {
      name    = "Microsoft.App/environments"
      actions = ["Microsoft.Network/virtualNetworks/subnets/join/action"]
    }
  }
}

resource "azurerm_subnet" "endpoints" {
  count                             = var.private_network ? 1 : 0
  name                              = "endpoints"
  resource_group_name               = local.group
  virtual_network_name              = azurerm_virtual_network.this[0].name
  address_prefixes                  = [cidrsubnet(var.address_space, 24 - local.prefix, 2)]
  default_outbound_access_enabled   = false
  private_endpoint_network_policies = "Enabled"
}

resource "azurerm_subnet" "nodes" {
  count                           = var.private_network ? 1 : 0
  name                            = "nodes"
  resource_group_name             = local.group
  virtual_network_name            = azurerm_virtual_network.this[0].name
  address_prefixes                = [cidrsubnet(var.address_space, 1, 1)]
  default_outbound_access_enabled = false
}

# Its default rules let nobody in from outside the network.
resource "azurerm_network_security_group" "nodes" {
  count               = var.private_network ? 1 : 0
  name                = "${var.name}-nodes"
  resource_group_name = local.group
  location            = local.location
  tags                = var.tags
}

# Tasks run on nodes, and have no business with the server's secrets and its database.
resource "azurerm_network_security_group" "endpoints" {
  count               = var.private_network ? 1 : 0
  name                = "${var.name}-endpoints"
  resource_group_name = local.group
  location            = local.location
  tags                = var.tags

  security_rule = [for number, key in ["database", "vault"] : {
    name                                       = "no-${key}-for-nodes"
    description                                = ""
    priority                                   = 100 + number
    direction                                  = "Inbound"
    access                                     = "Deny"
    protocol                                   = "*"
    source_address_prefix                      = azurerm_subnet.nodes[0].address_prefixes[0]
    source_address_prefixes                    = []
    source_application_security_group_ids      = []
    source_port_range                          = "*"
    source_port_ranges                         = []
    destination_address_prefix                 = "${azurerm_private_endpoint.this[key].private_service_connection[0].private_ip_address}/32"
    destination_address_prefixes               = []
    destination_application_security_group_ids = []
    destination_port_range                     = "*"
    destination_port_ranges                    = []
  }]
}

resource "azurerm_subnet_network_security_group_association" "nodes" {
  count                     = var.private_network ? 1 : 0
  subnet_id                 = azurerm_subnet.nodes[0].id
  network_security_group_id = azurerm_network_security_group.nodes[0].id
}

resource "azurerm_subnet_network_security_group_association" "endpoints" {
  count                     = var.private_network ? 1 : 0
  subnet_id                 = azurerm_subnet.endpoints[0].id
  network_security_group_id = azurerm_network_security_group.endpoints[0].id
}

# The nodes' way out, to the registries of tasks' images: they have no public addresses.
resource "azurerm_public_ip" "nodes" {
  count               = var.private_network ? 1 : 0
  name                = "${var.name}-nodes"
  resource_group_name = local.group
  location            = local.location
  allocation_method   = "Static"
  sku                 = "Standard"
  tags                = var.tags
}

resource "azurerm_nat_gateway" "nodes" {
  count               = var.private_network ? 1 : 0
  name                = "${var.name}-nodes"
  resource_group_name = local.group
  location            = local.location
  sku_name            = "Standard"
  tags                = var.tags
}

resource "azurerm_nat_gateway_public_ip_association" "nodes" {
  count                = var.private_network ? 1 : 0
  nat_gateway_id       = azurerm_nat_gateway.nodes[0].id
  public_ip_address_id = azurerm_public_ip.nodes[0].id
}

resource "azurerm_subnet_nat_gateway_association" "nodes" {
  count          = var.private_network ? 1 : 0
  subnet_id      = azurerm_subnet.nodes[0].id
  nat_gateway_id = azurerm_nat_gateway.nodes[0].id
}

resource "azurerm_private_dns_zone" "this" {
  for_each            = toset([for endpoint in local.endpoints : endpoint[2]])
  name                = each.value
  resource_group_name = local.group
  tags                = var.tags
}

resource "azurerm_private_dns_zone_virtual_network_link" "this" {
  for_each              = azurerm_private_dns_zone.this
  name                  = "network"
  resource_group_name   = local.group
  private_dns_zone_name = each.value.name
  virtual_network_id    = azurerm_virtual_network.this[0].id
  tags                  = var.tags
}

resource "azurerm_private_endpoint" "this" {
  for_each            = local.endpoints
  name                = "${var.name}-${each.key}"
  resource_group_name = local.group
  location            = local.location
  subnet_id           = azurerm_subnet.endpoints[0].id
  tags                = var.tags

  private_service_connection {
    name                           = each.key
    private_connection_resource_id = each.value[0]
    subresource_names              = [each.value[1]]
    is_manual_connection           = false
  }

  private_dns_zone_group {
    name                 = "default"
    private_dns_zone_ids = [azurerm_private_dns_zone.this[each.value[2]].id]
  }

  depends_on = [azurerm_private_dns_zone_virtual_network_link.this]
}

# A server that is reached from the network alone has its name there alone.
resource "azurerm_private_dns_zone" "app" {
  count               = local.internal_app
  name                = azurerm_container_app_environment.this[0].default_domain
  resource_group_name = local.group
  tags                = var.tags
}

resource "azurerm_private_dns_zone_virtual_network_link" "app" {
  count                 = local.internal_app
  name                  = "network"
  resource_group_name   = local.group
  private_dns_zone_name = azurerm_private_dns_zone.app[0].name
  virtual_network_id    = azurerm_virtual_network.this[0].id
  tags                  = var.tags
}

resource "azurerm_private_dns_a_record" "app" {
  count               = local.internal_app
  name                = "*"
  zone_name           = azurerm_private_dns_zone.app[0].name
  resource_group_name = local.group
  ttl                 = 300
  records             = [azurerm_container_app_environment.this[0].static_ip_address]
}
