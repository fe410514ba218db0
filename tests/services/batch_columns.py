"""What lists of the Batch stand-in can be filtered by. Source: "OData filters in Batch"."""

from __future__ import annotations

from tests.services.batch_odata import Column, Columns


def _lower(text: object) -> str | None:
    return str(text).lower() if text is not None else None


_NAMED: dict[str, Column] = {
    "id": Column("text", lambda it: it.id.lower()),
    "state": Column("state", lambda it: it.state),
    "stateTransitionTime": Column("time", lambda it: it.changed),
}
_DATED = {
    "creationTime": Column("time", lambda it: it.created),
    "lastModified": Column("time", lambda it: it.modified),
    "displayName": Column("text", lambda it: _lower(it.given.get("displayName"))),
}
_BEFORE = {
    "previousState": Column("state", lambda it: it.previous),
    "previousStateTransitionTime": Column("time", lambda it: it.changed_before),
}
TASK_COLUMNS: Columns = {
    **_NAMED,
    **_DATED,
    **_BEFORE,
    "commandLine": Column("text", lambda it: _lower(it.given["commandLine"])),
    "executionInfo/startTime": Column("time", lambda it: it.started),
    "executionInfo/endTime": Column("time", lambda it: it.ended),
    "executionInfo/exitCode": Column("number", lambda it: it.exit_code),
    "executionInfo/retryCount": Column("number", lambda it: it.retries),
    "executionInfo/requeueCount": Column("number", lambda it: it.requeues),
    "executionInfo/result": Column("state", lambda it: it.result),
    "nodeInfo/poolId": Column("text", lambda it: _lower(it.job.pool_id)),
    "nodeInfo/nodeId": Column("text", lambda it: it.execution and _lower(it.execution.node.id)),
}
JOB_COLUMNS: Columns = {
    **_NAMED,
    **_DATED,
    **_BEFORE,
    "executionInfo/poolId": Column("text", lambda it: _lower(it.pool_id)),
}
POOL_COLUMNS: Columns = {
    **_NAMED,
    **_DATED,
    "vmSize": Column("text", lambda it: _lower(it.vm_size)),
    "allocationState": Column("state", lambda it: it.allocation),
    "allocationStateTransitionTime": Column("time", lambda it: it.allocation_changed),
}
NODE_COLUMNS: Columns = {
    "state": _NAMED["state"],
    "stateTransitionTime": _NAMED["stateTransitionTime"],
    "allocationTime": Column("time", lambda it: it.created),
    "lastBootTime": Column("time", lambda it: it.booted),
    "startTaskInfo/state": Column("state", lambda it: (it.start_task or {}).get("state")),
    "startTaskInfo/result": Column("state", lambda it: (it.start_task or {}).get("result")),
    "startTaskInfo/exitCode": Column("number", lambda it: (it.start_task or {}).get("exitCode")),
}
