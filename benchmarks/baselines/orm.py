"""Reference: what most would write, FastAPI with SQLAlchemy's async ORM, a session per request.

Same durability as the server under test: SQLite in WAL mode with synchronous=FULL.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Declarative base."""


class TaskRow(Base):
    """One task, its document as JSON text."""

    __tablename__ = "tasks"
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(index=True)
    name: Mapped[str | None] = mapped_column(index=True)
    created: Mapped[datetime]
    document: Mapped[str]


class Executor(BaseModel):
    """tesExecutor."""

    image: str
    command: list[str]
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: dict[str, str] | None = None
    ignore_error: bool | None = None


class Input(BaseModel):
    """tesInput."""

    path: str
    url: str | None = None
    content: str | None = None
    name: str | None = None
    description: str | None = None
    type: str | None = None


class Output(BaseModel):
    """tesOutput."""

    path: str
    url: str
    name: str | None = None
    description: str | None = None
    type: str | None = None
    path_prefix: str | None = None


class Resources(BaseModel):
    """tesResources."""

    cpu_cores: float | None = None
    ram_gb: float | None = None
    disk_gb: float | None = None
    preemptible: bool | None = None


class Task(BaseModel):
    """tesTask."""

    executors: list[Executor]
    name: str | None = None
    description: str | None = None
    inputs: list[Input] = []
    outputs: list[Output] = []
    resources: Resources | None = None
    volumes: list[str] = []
    tags: dict[str, str | None] = {}


engine = create_async_engine("sqlite+aiosqlite:///" + os.environ["ORM_DATABASE"])
session_of = async_sessionmaker(engine, expire_on_commit=False)


@event.listens_for(engine.sync_engine, "connect")
def durable(connection: Any, _record: Any) -> None:
    """The same pragmas as the server under test."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Make the table at start."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


async def session() -> AsyncIterator[AsyncSession]:
    """A session per request."""
    async with session_of() as current:
        yield current


app = FastAPI(lifespan=lifespan)


@app.post("/ga4gh/tes/v1/tasks")
async def create(task: Task, db: AsyncSession = Depends(session)) -> dict[str, str]:  # noqa: B008 - FastAPI's idiom
    """Store the task, reply with its id."""
    row = TaskRow(
        id=secrets.token_hex(13),
        state="QUEUED",
        name=task.name,
        created=datetime.now(UTC),
        document=json.dumps(task.model_dump(exclude_none=True)),
    )
    db.add(row)
    await db.commit()
    return {"id": row.id}
