"""The settings of the Azure Batch backend, a part of all."""

from __future__ import annotations

from typing import Annotated

import msgspec

from tesazure.settings.help import Help


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which account, which machines, and how many of them."""

    batch_account_name: Annotated[
        str, Help("Azure Batch account that tasks run in.", live=True)
    ] = ""
    batch_account_key: Annotated[
        str,
        Help(
            "One of its keys; without, AZURE_CLIENT_ID or AZURE_IDENTITY.", secret=True, live=True
        ),
    ] = ""
    batch_account_url: Annotated[
        str,
        Help(
            "Its URL, as the portal shows it: https://name.region.batch.azure.com. Empty: as its"
            " name, BATCH_REGION and BATCH_ENDPOINT_SUFFIX say.",
            live=True,
        ),
    ] = ""
    batch_endpoint_suffix: Annotated[
        str, Help("What Batch accounts' hosts end in, after the region.", live=True)
    ] = "batch.azure.com"
    filetransfer_container_image: Annotated[
        str, Help("Image that carries the runner to nodes of Azure Batch.", live=True)
    ] = ""
    batch_storage_container: Annotated[
        str,
        Help(
            "Container of STORAGE_ACCOUNT_NAME through which the server and its nodes on Azure"
            " Batch exchange plans, reports and streams; made if there is none.",
            live=True,
        ),
    ] = "batchtmp"
    batch_region: Annotated[
        str, Help("Azure region of the Batch account; empty: as BATCH_ACCOUNT_URL says.", live=True)
    ] = ""
    azure_subscription_id: Annotated[
        str,
        Help(
            "Subscription of the Batch account. With it and BATCH_RESOURCE_GROUP, sizes and quotas"
            " are read from Azure Resource Manager as AZURE_CLIENT_ID or AZURE_IDENTITY; without,"
            " sizes are those of a table in the package.",
            live=True,
        ),
    ] = ""
    batch_resource_group: Annotated[
        str, Help("Resource group of the Batch account.", live=True)
    ] = ""
    retail_prices_url: Annotated[
        str,
        Help(
            "Azure Retail Prices API; empty: prices are those of a table in the package.", live=True
        ),
    ] = "https://prices.azure.com/api/retail/prices"
    batch_vm_sizes: Annotated[
        tuple[str, ...],
        Help(
            "VM sizes that tasks may run on, such as Standard_D*_v5; empty: all. The cheapest one"
            " that fits is taken.",
            live=True,
        ),
    ] = ()
    batch_vm_sizes_denied: Annotated[
        tuple[str, ...],
        Help("VM sizes that no task runs on, whatever BATCH_VM_SIZES says.", live=True),
    ] = ()
    batch_spot: Annotated[
        bool,
        Help(
            "Whether tasks that do not say `preemptible` run on Spot nodes, which are cheaper.",
            live=True,
        ),
    ] = False
    batch_spot_fallback: Annotated[
        bool, Help("Whether dedicated nodes are taken while Azure has no Spot ones.", live=True)
    ] = True
    batch_min_nodes: Annotated[
        int,
        Help(
            "Nodes that each pool keeps while it exists, also without tasks: they cost.", live=True
        ),
    ] = 0
    batch_max_nodes: Annotated[int, Help("Nodes that one pool has at most.", live=True)] = 20
    batch_max_pools: Annotated[
        int, Help("Pools that this installation has at most; more tasks wait.", live=True)
    ] = 20
    batch_pool_idle_min: Annotated[
        float, Help("Minutes after its last task that a pool is deleted.", live=True)
    ] = 15
    batch_override_pool_id: Annotated[
        str,
        Help(
            "Existing pool that all tasks run on; it is neither changed nor deleted. Its image must"
            " be able to run containers.",
            live=True,
        ),
    ] = ""
    batch_pool_ids: Annotated[
        tuple[str, ...],
        Help(
            "Existing pools that tasks may name by `pool_id`; they are neither changed nor"
            " deleted. A task can use what its pool's nodes may use, also an identity of theirs.",
            live=True,
        ),
    ] = ()
    batch_pool_identity_id: Annotated[
        str,
        Help(
            "Resource id of the user-assigned managed identity that nodes pull images of"
            " PRIVATE_DOCKER_REGISTRY_URL with, an Azure Container Registry, in place of a user and"
            " password. Pools with it are made by Azure Resource Manager: needs an identity of the"
            " server's, AZURE_SUBSCRIPTION_ID and BATCH_RESOURCE_GROUP."
        ),
    ] = ""
    batch_image: Annotated[
        str,
        Help(
            "Image of the nodes, publisher:offer:sku:version, one that Batch supports for"
            " containers.",
            live=True,
        ),
    ] = "microsoft-dsvm:ubuntu-hpc:2404:latest"
    batch_node_agent: Annotated[
        str, Help("Node agent for BATCH_IMAGE; empty: the one that Batch lists for it.", live=True)
    ] = ""
    batch_subnet_id: Annotated[
        str,
        Help(
            "Resource id of the subnet that nodes are in; empty: a network of Batch's own. Needs"
            " an identity, as Batch lets no key make pools in a subnet.",
            live=True,
        ),
    ] = ""
    batch_public_addresses: Annotated[
        bool,
        Help(
            "Whether nodes have public addresses. Without, they need a subnet with a way to the"
            " registries and storage that tasks use.",
            live=True,
        ),
    ] = True
    batch_file_share: Annotated[
        str,
        Help(
            "Azure Files share of STORAGE_ACCOUNT_NAME that all nodes mount as"
            " /tes-wd/shared-global; needs STORAGE_ACCOUNT_KEY, which Batch keeps with the pool.",
            live=True,
        ),
    ] = ""
