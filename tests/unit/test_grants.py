"""grants: storage that does not answer a look into its directories holds up no attempt."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from tesazure.errors import StorageUnavailable
from tesazure.grants import LISTING, Grants, Threads
from tesazure.model import Executor, Input, Task
from tesazure.plan import Defaults, make_plan
from tesazure.settings import load
from tesazure.storage.configured import endpoints_of, grant_config_of
from tesazure.storage.grant import Granter
from tesazure.storage.registry import Storages


async def test_secrets_are_made_while_no_directory_can_be_listed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        blob = f"http://127.0.0.1:{silent.getsockname()[1]}/acct"
        settings = load(
            {
                "APP_STORAGE_ACCOUNT_NAME": "acct",
                "APP_STORAGE_ACCOUNT_KEY": "YSBrZXkgZm9yIHRlc3Rz",
                "APP_STORAGE_BLOB_ENDPOINT": blob,
            }
        ).settings
        storages = Storages((), endpoints=endpoints_of(settings))
        storages.wait(msgspec.structs.replace(LISTING, pause_s=0.05))
        grants = Grants(Granter(grant_config_of(settings)), storages, Threads())
        looks = [asyncio.ensure_future(grants.names(f"{blob}/calls/d", 10)) for _ in range(5)]
        # So many that they are signed in a thread.
        inputs = [Input(path=f"/in/{i}", url=f"{blob}/calls/{i}") for i in range(200)]
        task = Task(executors=[Executor(image="x", command=["true"])], inputs=inputs)
        plan = make_plan("t", task, Defaults(1, 1, 1, 0), [])
        assert not grants.granter.is_quick(plan)
        await asyncio.sleep(0)  # all looks are asked for
        assert len((await grants.grant(plan, {})).inputs) == 200
        assert not any(look.done() for look in looks)
    # Whose connections break now.
    for look in looks:
        with pytest.raises(StorageUnavailable, match="acct/calls/d"):
            await look
    storages.close()
