resource "azurerm_log_analytics_workspace" "this" {
  name                = "${var.name}-logs"
  resource_group_name = local.group
  location            = local.location
  sku                 = "PerGB2018"
  retention_in_days   = var.log_retention_days
  tags                = var.tags
}

resource "azurerm_application_insights" "this" {
  name                = "${var.name}-telemetry"
  resource_group_name = local.group
  location            = local.location
  workspace_id        = azurerm_log_analytics_workspace.this.id
  application_type    = "web"
  retention_in_days   = var.log_retention_days
  tags                = var.tags
}

# Who read or wrote which secret.
resource "azurerm_monitor_diagnostic_setting" "vault" {
  name                       = "audit"
  target_resource_id         = azurerm_key_vault.this.id
  log_analytics_workspace_id = azurerm_log_analytics_workspace.this.id
  enabled_log {
    category_group = "audit"
  }
}

resource "azurerm_consumption_budget_resource_group" "this" {
  count             = var.budget_amount > 0 ? 1 : 0
  name              = "${var.name}-monthly"
  resource_group_id = azurerm_resource_group.this.id
  amount            = var.budget_amount
  time_grain        = "Monthly"

  time_period {
    start_date = formatdate("YYYY-MM-'01T00:00:00Z'", plantimestamp())
  }

  dynamic "notification" {
    for_each = { Actual = 80, Forecasted = 100 }
    content {
      operator       = "GreaterThanOrEqualTo"
      threshold_type = notification.key
      threshold      = notification.value
      contact_emails = var.budget_emails
    }
  }

  lifecycle {
    # The month of the first apply; Azure does not let it change.
    ignore_changes = [time_period]
  }
}
