"""The server's log: one JSON object per line on standard error."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

_CLOUDS = ("azure", "botocore", "google", "msal", "paramiko", "urllib3")


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
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode("utf-8")
