"""Making pools and jobs, and deleting them: each call to Batch with what may come of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from tesazure.backends.azure_batch import begun, images, pool_form
from tesazure.backends.azure_batch.account import Account, Exists, Gone, Refused
from tesazure.backends.azure_batch.autoscale import Scale
from tesazure.backends.azure_batch.catalog import Catalog
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.images import NodeImage
from tesazure.backends.azure_batch.pool_look import text_of
from tesazure.backends.azure_batch.shapes import Shape
from tesazure.backends.azure_batch.tasks import registry_of
from tesazure.errors import BackendUnavailable, Unplaceable

if TYPE_CHECKING:
    from azure.batch import BatchClient, models

log = logging.getLogger(__name__)


class PoolMaker:
    """Makes and deletes. Every method may be called again, and raises BackendUnavailable."""

    def __init__(self, config: BatchConfig, account: Account, catalog: Catalog) -> None:
        self._config = config
        self._account = account
        self._catalog = catalog
        self._image: NodeImage | None = None
        self._encrypts = True

    async def make_pool(self, id_: str, shape: Shape, scale: Scale) -> models.BatchPool | None:
        """Make a pool of a shape; the one that was there already. A VM size that Batch refuses is
        left out of the catalog for a while."""
        size = self._catalog.sizes.find(shape.vm_size)
        image = await self._node_image()
        encrypted = self._encrypts and size is not None and size.encryption_at_host
        while True:
            form = pool_form.describe_pool(
                self._config, id_, shape, image, scale, encrypted=encrypted
            )
            try:
                await self._create_pool(form)
            except Exists:
                return await self._find_alive(id_)
            except Gone as error:
                raise _being_deleted(id_) from error
            except Refused as error:
                if not encrypted or not _is_of_encryption(error):
                    raise self._refusal(shape, error) from error
                # A subscription has to be registered for it ("EncryptionAtHost").
                log.warning("disks of nodes are not encrypted on their hosts: %s", error)
                encrypted = self._encrypts = False
            else:
                log.info("made pool %s of %s", id_, shape.vm_size)
                return None

    async def _create_pool(self, form: models.BatchPoolCreateOptions) -> None:
        if self._config.pool_identity:
            arm = await self._catalog.arm()
            await asyncio.to_thread(arm.make_pool, form)
        else:
            await self._account.call("make a pool", lambda client: client.create_pool(form))

    async def _find_alive(self, id_: str) -> models.BatchPool:
        """With its formula."""
        try:
            found = await self._account.call(
                "get a pool",
                lambda client: client.get_pool(
                    id_, select=["id", "state", "enableAutoScale", "autoScaleFormula"]
                ),
            )
        except Gone as error:  # since it was found to be there
            raise _being_deleted(id_) from error
        if text_of(found.state) == "deleting":
            raise _being_deleted(id_)
        return found

    async def check_pool(self, id_: str) -> None:
        """Raises Unplaceable for a pool of somebody else's that attempts cannot run on."""
        try:
            found = await self._account.call(
                "get a pool",
                lambda client: client.get_pool(
                    id_, select=["id", "state", "virtualMachineConfiguration", "identity"]
                ),
            )
        except Gone:
            raise Unplaceable(f"there is no pool {id_} in the Batch account") from None
        if text_of(found.state) == "deleting":
            raise Unplaceable(f"pool {id_} is being deleted")
        machine = found.virtual_machine_configuration
        if machine is None or machine.container_configuration is None:
            raise Unplaceable(
                f"pool {id_} cannot run containers: it was made without a containerConfiguration"
            )
        wanted = self._config.pool_identity
        if wanted and registry_of(self._config) is not None and wanted.lower() not in _ids(found):
            raise Unplaceable(
                f"pool {id_} has not the identity of BATCH_POOL_IDENTITY_ID, with which its nodes"
                " are to pull the runner's image"
            )

    async def make_job(self, id_: str, pool: str, shape: Shape) -> None:
        """Make a job, if there is none. One that has ended is deleted first."""
        form = pool_form.describe_job(self._config, id_, pool, shape)
        try:
            await self._account.call("make a job", lambda client: client.create_job(form))
        except Exists:
            state = await self.job_state(id_)
            if state in ("completed", "terminating"):
                await self.delete_job(id_)
            if state in ("completed", "terminating", "deleting"):
                raise _ended(id_) from None
        except Gone as error:
            raise _ended(id_) from error
        except Refused as error:
            if error.code != "ActiveJobAndScheduleQuotaReached":
                raise
            raise BackendUnavailable(
                "the Batch account has as many active jobs as its quota allows; ask for more in the"
                f" portal, under Quotas of the account, or end jobs ({error.code})"
            ) from error

    async def job_state(self, id_: str) -> str:
        """In lower case; `deleting` also when it is gone."""
        try:
            found = await self._account.call(
                "get a job", lambda client: client.get_job(id_, select=["id", "state"])
            )
        except Gone:
            return "deleting"
        return text_of(found.state)

    async def has_tasks(self, job: str) -> bool:
        """Whether there is any task in a job, of whatever server."""

        def ask(client: BatchClient) -> bool:
            tasks = iter(client.list_tasks(job, max_results=1, select=["id"]))
            return next(tasks, None) is not None

        try:
            return await self._account.call("list tasks", ask)
        except Gone:
            return False

    async def delete_job(self, id_: str) -> None:
        """Begin to; succeeds if it is gone."""
        with contextlib.suppress(Gone):
            await self._account.call("delete a job", lambda client: begun.delete_job(client, id_))

    async def delete_pool(self, id_: str) -> None:
        """Begin to; succeeds if it is gone."""
        with contextlib.suppress(Gone):
            await self._account.call("delete a pool", lambda client: begun.delete_pool(client, id_))

    async def stop_scaling(self, pool: str) -> None:
        """Have Batch evaluate a pool's formula no more, until it is given one again."""
        await self._account.call(
            "stop a pool's scaling", lambda client: client.disable_pool_auto_scale(pool)
        )

    async def remove_nodes(self, pool: str, nodes: list[str]) -> None:
        """Begin to. Batch demands that the pool does not scale by itself."""
        await self._account.call(
            "remove nodes", lambda client: begun.remove_nodes(client, pool, nodes)
        )

    async def _node_image(self) -> NodeImage:
        if self._image is None:
            config = self._config
            self._image = images.pinned(config.image, config.node_agent) or images.choose(
                await self._account.call(
                    "list supported images", lambda client: list(client.list_supported_images())
                ),
                config.image,
            )
        return self._image

    def _refusal(self, shape: Shape, error: Refused) -> BackendUnavailable:
        if error.code == "PoolQuotaReached":
            return BackendUnavailable(
                "the Batch account has as many pools as its quota allows; ask for more in the"
                f" portal, under Quotas of the account, or delete pools ({error.code})"
            )
        if _is_of_size(error):
            self._catalog.refuse(shape.vm_size, str(error))
        return error


def _ids(pool: models.BatchPool) -> set[str]:
    """ARM ids of the identities that a pool has, in lower case."""
    assigned = pool.identity.user_assigned_identities if pool.identity is not None else None
    return {each.resource_id.lower() for each in assigned or ()}


def _being_deleted(pool: str) -> BackendUnavailable:
    return BackendUnavailable(f"pool {pool} is being deleted; it is made anew when that has ended")


def _ended(job: str) -> BackendUnavailable:
    return BackendUnavailable(f"job {job} is being deleted; it is made anew when that has ended")


def _is_of_size(error: Refused) -> bool:
    """Whether Batch refuses a pool for its VM size."""
    return "vmsize" in str(error).lower().replace(" ", "")


def _is_of_encryption(error: Refused) -> bool:
    """Whether Batch refuses a pool for the encryption of its disks."""
    said = str(error).lower()
    return "encryptionathost" in said or "securityprofile" in said
