"""The server's log: one JSON object per line on standard error.

A line says which request, task and attempt it is about, where it is about one: by `extra` of its
own, or because it was written while one was being looked after (`about`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec

_IDS = ("request_id", "task", "attempt")
_about: ContextVar[Mapping[str, str | bytes | None]] = ContextVar("about")
_CLOUDS = ("azure", "botocore", "google", "msal", "paramiko", "urllib3")


def about(**ids: str | bytes | None) -> dict[str, str | bytes | None]:
    """Until the present asyncio task ends, lines are about these: `request_id`, `task`, `attempt`.
    So are those of what it begins; clear what this returns if that may outlive it. Cheap: called
    for every request."""
    _about.set(ids)
    return ids


def configure(level: str) -> None:
    """Log everything of this level, and above, from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], force=True)
    use(level)


def use(level: str) -> None:
    """Log everything of another level, and above."""
    logging.getLogger().setLevel(level.upper())
    # Requests are logged by us, and so is whatever fails in them; httpx logs whole URLs.
    # The clouds' SDKs tell every request.
    for name in ("uvicorn", "httpx", "httpcore", "asyncio", "alembic", *_CLOUDS):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


class _JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        ids = {**_about.get({}), **record.__dict__}
        for name in _IDS:
            if known := ids.get(name):
                line[name] = known.decode("ascii") if isinstance(known, bytes) else str(known)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode("utf-8")
