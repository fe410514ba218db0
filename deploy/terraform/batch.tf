resource "azurerm_batch_account" "this" {
  #checkov:skip=CKV_AZURE_76: Microsoft's keys encrypt it; keys of one's own are a choice that needs their rotation
  #checkov:skip=CKV_AZURE_248: access to the account is by Entra ID alone; its network is closed with private_network
  name                          = local.unique
  resource_group_name           = local.group
  location                      = local.location
  pool_allocation_mode          = "BatchService"
  allowed_authentication_modes  = ["AAD"]
  public_network_access_enabled = !var.private_network
  tags                          = var.tags
}
