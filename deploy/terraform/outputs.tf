output "app_service_default_hostname" {
  description = "URL of the server. The name is that of 2019, when it was an App Service."
  value       = var.deploy_app ? "https://${azurerm_container_app.api[0].ingress[0].fqdn}" : ""
}

output "resource_group" {
  description = "Everything lies in it."
  value       = local.group
}

output "registry" {
  description = "Host of the registry that the images are pulled from."
  value       = local.registry_server
}

output "key_vault_url" {
  description = "The Key Vault with the server's secrets, and with any setting (docs/configuration.md)."
  value       = azurerm_key_vault.this.vault_uri
}

output "storage_account" {
  description = "The storage account of tasks' files."
  value       = azurerm_storage_account.this.name
}

output "batch_account" {
  description = "The Batch account that tasks run in."
  value       = azurerm_batch_account.this.name
}

output "database_host" {
  description = "The PostgreSQL server."
  value       = azurerm_postgresql_flexible_server.this.fqdn
}

output "next_steps" {
  description = "What to do now."
  value = join("\n", flatten([
    local.own_registry && !var.deploy_app ? [
      "1. Build both images and push them, from the root of a checkout:",
      "   az acr login --name ${azurerm_container_registry.this[0].name}",
      "   docker build -f deploy/images/api/Dockerfile -t ${local.api_image} . && docker push ${local.api_image}",
      "   docker build -f deploy/images/runner/Dockerfile -t ${local.runner_image} . && docker push ${local.runner_image}",
      "2. Make the password that nodes pull with. It goes into the Key Vault and nowhere else:",
      "   (umask 077; az acr token credential generate --registry ${azurerm_container_registry.this[0].name} --name nodes --password1 --query 'passwords[0].value' --output tsv | tr -d '\\n' > nodes.password)",
      "   az keyvault secret set --vault-name ${azurerm_key_vault.this.name} --name TESAZURE-PRIVATE-DOCKER-REGISTRY-PASSWORD --file nodes.password --output none; rm nodes.password",
      "3. terraform apply, now with deploy_app = true",
    ] : [],
    !local.own_registry && !var.deploy_app ? ["terraform apply, with deploy_app = true"] : [],
    var.deploy_app ? [
      "curl https://${azurerm_container_app.api[0].ingress[0].fqdn}/v1/tasks/service-info   # 200 once it runs",
      "curl https://${azurerm_container_app.api[0].ingress[0].fqdn}/readyz                  # what is missing until it is 200",
      "az containerapp logs show --resource-group ${local.group} --name ${azurerm_container_app.api[0].name} --follow",
    ] : [],
  ]))
}
