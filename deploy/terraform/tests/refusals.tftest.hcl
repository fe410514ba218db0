# What variables refuse, before anything is asked of Azure.

mock_provider "azurerm" {
  source = "./tests/azure"
}

variables {
  subscription_id    = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
  image_tag          = "0.1.0"
  aad_audience       = "0f2d6e1c-4f5e-4c5f-8a07-3f8d5a6b7c81"
  acr_login_password = ""
}

run "subscription" {
  command = plan
  variables {
    subscription_id = "my-subscription"
  }
  expect_failures = [var.subscription_id]
}

run "group_name" {
  command = plan
  variables {
    resource_group_name = "ends-in-a-dot."
  }
  expect_failures = [var.resource_group_name]
}

run "location" {
  command = plan
  variables {
    resource_group_location = "West Europe"
  }
  expect_failures = [var.resource_group_location]
}

run "name" {
  command = plan
  variables {
    name = "Tes-Azure"
  }
  expect_failures = [var.name]
}

run "name_too_long" {
  command = plan
  variables {
    name = "tesazuretesazure"
  }
  expect_failures = [var.name]
}

run "latest" {
  command = plan
  variables {
    image_tag = "latest"
  }
  expect_failures = [var.image_tag]
}

run "image_tag" {
  command = plan
  variables {
    image_tag = "a tag"
  }
  expect_failures = [var.image_tag]
}

run "runner_latest" {
  command = plan
  variables {
    runner_image_tag = "latest"
  }
  expect_failures = [var.runner_image_tag]
}

run "runner_of_a_digest" {
  command = plan
  variables {
    image_tag = "sha256:8b1a9953c4611296a827abf8c47804d7f0c1f1e2a5a9d3d1e8f0a7b6c5d4e3f2"
  }
  expect_failures = [var.runner_image_tag]
}

run "registry_url" {
  command = plan
  variables {
    acr_login_server   = "https://ours.azurecr.io"
    acr_login_username = "puller"
    acr_login_password = "not-a-real-password"
  }
  expect_failures = [var.acr_login_server]
}

run "registry_without_user" {
  command = plan
  variables {
    acr_login_server   = "ours.azurecr.io"
    acr_login_password = "not-a-real-password"
  }
  expect_failures = [var.acr_login_username]
}

run "registry_without_password" {
  command = plan
  variables {
    acr_login_server   = "ours.azurecr.io"
    acr_login_username = "puller"
  }
  expect_failures = [var.acr_login_password]
}

run "password_version" {
  command = plan
  variables {
    acr_login_password_version = 0
  }
  expect_failures = [var.acr_login_password_version]
}

run "no_sign_in" {
  command = plan
  variables {
    aad_audience = ""
  }
  expect_failures = [var.aad_audience]
}

run "restrictions" {
  command = plan
  variables {
    task_access_restrictions = "per-group"
  }
  expect_failures = [var.task_access_restrictions]
}

run "allowed_addresses" {
  command = plan
  variables {
    allowed_ip_ranges = ["everybody"]
  }
  expect_failures = [var.allowed_ip_ranges]
}

run "endpoint_from_nowhere" {
  command = plan
  variables {
    public_endpoint = false
  }
  expect_failures = [var.public_endpoint]
}

run "address_space_too_small" {
  command = plan
  variables {
    address_space = "10.0.0.0/24"
  }
  expect_failures = [var.address_space]
}

run "address_space" {
  command = plan
  variables {
    address_space = "10.0.0.0"
  }
  expect_failures = [var.address_space]
}

run "deployer_addresses" {
  command = plan
  variables {
    deployer_ip_ranges = ["home"]
  }
  expect_failures = [var.deployer_ip_ranges]
}

run "no_replica" {
  command = plan
  variables {
    min_replicas = 0
  }
  expect_failures = [var.min_replicas]
}

run "fewer_than_least" {
  command = plan
  variables {
    min_replicas = 5
  }
  expect_failures = [var.min_replicas]
}

run "too_many_replicas" {
  command = plan
  variables {
    max_replicas = 31
  }
  expect_failures = [var.max_replicas]
}

run "cpu" {
  command = plan
  variables {
    cpu = 0.3
  }
  expect_failures = [var.cpu]
}

run "setting_with_prefix" {
  command = plan
  variables {
    app_settings = { app_spot = "true" }
  }
  expect_failures = [var.app_settings]
}

run "setting_with_a_secret" {
  command = plan
  variables {
    app_settings = { S3_SECRET_ACCESS_KEY = "not-a-real-key" }
  }
  expect_failures = [var.app_settings]
}

run "database_with_a_password" {
  command = plan
  variables {
    app_settings = { DATABASE_URL = "postgresql://me:not-a-real-password@db.example.org/tesazure" }
  }
  expect_failures = [var.app_settings]
}

run "database_with_a_password_behind" {
  command = plan
  variables {
    app_settings = { DATABASE_URL = "postgresql://me@db.example.org/tesazure?password=not-a-real-one" }
  }
  expect_failures = [var.app_settings]
}

run "postgres_size" {
  command = plan
  variables {
    postgres_sku = "Standard_D2ds_v5"
  }
  expect_failures = [var.postgres_sku]
}

run "postgres_disk" {
  command = plan
  variables {
    postgres_storage_mb = 1000
  }
  expect_failures = [var.postgres_storage_mb]
}

run "burstable_with_standby" {
  command = plan
  variables {
    postgres_high_availability = true
  }
  expect_failures = [var.postgres_high_availability]
}

run "backups" {
  command = plan
  variables {
    backup_retention_days = 1
  }
  expect_failures = [var.backup_retention_days]
}

run "replication" {
  command = plan
  variables {
    storage_replication = "RAGRS"
  }
  expect_failures = [var.storage_replication]
}

run "container_name" {
  command = plan
  variables {
    storage_containers = ["My--Files"]
  }
  expect_failures = [var.storage_containers]
}

run "container_of_ours" {
  command = plan
  variables {
    storage_containers = ["batchtmp"]
  }
  expect_failures = [var.storage_containers]
}

run "share_size" {
  command = plan
  variables {
    shared_global_gb = -1
  }
  expect_failures = [var.shared_global_gb]
}

run "log_days" {
  command = plan
  variables {
    log_retention_days = 45
  }
  expect_failures = [var.log_retention_days]
}

run "budget" {
  command = plan
  variables {
    budget_amount = -1
  }
  expect_failures = [var.budget_amount]
}

run "budget_without_mail" {
  command = plan
  variables {
    budget_amount = 100
  }
  expect_failures = [var.budget_emails]
}

run "budget_mail" {
  command = plan
  variables {
    budget_amount = 100
    budget_emails = ["ops"]
  }
  expect_failures = [var.budget_emails]
}
