"""One passage over the steps of a run: making what is missing, or removing what was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tesazure.daemon_threads import in_thread
from tesazure.provision.base import Ground, Settling, Step
from tesazure.provision.logbook import Logbook
from tesazure.provisioning import Failure, ProvisionFailed, Request
from tesazure.secrecy import is_secret

TEST = "test-task"
SETTINGS = "settings"
_LAST = ((TEST, "A task on the new backend"), (SETTINGS, "Settings of the servers"))


async def make(logbook: Logbook, ground: Ground, settling: Settling, request: Request) -> str:
    """Everything that is to be, in order; what is there stays as it is. Returns what is in effect
    then. Raises ProvisionFailed, Lost."""
    steps = await _steps(logbook, ground)
    for step in steps:
        await _make(logbook, step)
    # Minutes and money: one that has been done in this run is not done again after a restart.
    if logbook.record(TEST).state != "done":
        async with logbook.step(TEST) as record:
            values = await _values(logbook, ground)
            record.detail = await settling.test(values, logbook.tell(record))
    async with logbook.step(SETTINGS) as record:
        values = await _values(logbook, ground)
        record.made = True  # from here on there may be something to take back
        await logbook.save()
        record.detail = await settling.publish(values, request)
        return record.detail


async def remove(logbook: Logbook, ground: Ground, settling: Settling, request: Request) -> str:
    """What this run made, the last first. Returns what stays although it did, and why; "" if
    nothing does. Raises ProvisionFailed, Lost."""
    steps = await _steps(logbook, ground)
    async with logbook.step(SETTINGS) as record:
        if record.made:
            record.detail = await settling.withdraw(request)
            record.made = False
        else:
            record.state, record.detail = "skipped", "this run has changed none"
    logbook.record(TEST).state = "skipped"
    stays = [await _remove(logbook, step) for step in reversed(steps)]
    known = {TEST, SETTINGS, *(step.name for step in steps)}
    for record in logbook.run.steps:
        if record.made and record.name not in known:
            # As roles, where the server has lost its identity.
            record.state = "skipped"
            record.detail = "stays: this server, as it is set up now, does not look after it"
            stays.append(f"{record.title} {record.detail}")
    return "; ".join(filter(None, stays))


async def _steps(logbook: Logbook, ground: Ground) -> Sequence[Step]:
    steps = await in_thread(ground.steps)
    logbook.expect([*((step.name, step.title) for step in steps), *_LAST])
    return steps


async def _values(logbook: Logbook, ground: Ground) -> Mapping[str, str]:
    values = await in_thread(ground.values)
    logbook.hide(value for name, value in values.items() if value and is_secret(name))
    return values


async def _make(logbook: Logbook, step: Step) -> None:
    async with logbook.step(step.name) as record:
        found = await in_thread(step.look)
        record.resource_id = found.resource_id or record.resource_id
        record.detail = found.detail
        if found.state == "foreign":
            problem = found.problem
            why = f"{step.title} belongs to somebody else" if problem is None else str(problem)
            remedy = "name another one in the request, or remove this one"
            raise ProvisionFailed(Failure("NameTaken", why, remedy))
        if found.state == "right":
            return
        is_ours = found.state == "ours" or record.made
        # What was found to be this run's is so also if this server dies in the middle.
        record.made = is_ours
        tell = logbook.tell(record)
        outcome = await in_thread(lambda: step.make(tell, is_ours))
        record.resource_id = outcome.resource_id or record.resource_id
        record.detail = outcome.detail
        record.made = is_ours or outcome.made


async def _remove(logbook: Logbook, step: Step) -> str:
    async with logbook.step(step.name) as record:
        found = await in_thread(step.look)
        if not record.made and found.state != "ours":
            there = found.state != "missing"
            record.state = "skipped"
            record.detail = "stays: this run did not make it" if there else "is not there"
            return ""
        record.made = True
        stays = await in_thread(step.remove)
        record.detail = f"stays: {stays}" if stays else "removed"
        record.made = bool(stays)
        return f"{step.title} stays: {stays}" if stays else ""
