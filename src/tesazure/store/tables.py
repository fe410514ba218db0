"""The tables. Migrations make them; a test holds the two against each other.

`tasks` is narrow, because every state change rewrites its rows; the documents lie apart. Only plain
column types are used, so that rows pass between driver and Python without conversion.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
)

from tesazure.model import State

metadata = MetaData()

# SQLite makes a column the row's own number only if its type is spelled INTEGER.
Number = BigInteger().with_variant(Integer(), "sqlite")

# Byte order on both databases: prefix filters are ranges, and must not depend on the locale.
Ordered = Text().with_variant(Text(collation="C"), "postgresql")

NAME_INDEXED = 128
"""Characters of a name in its index: PostgreSQL refuses index entries above 2.7 kB."""

_TAG_BYTES = 512
"""Longer tag keys and values are kept by their digest: PostgreSQL refuses index entries above
2.7 kB, and tags are only ever compared for equality."""

tasks = Table(
    "tasks",
    metadata,
    # The number of the event that made the task: grows, is never used again.
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("id", Ordered, nullable=False),
    Column("state", Ordered, nullable=False),
    Column("version", Integer, nullable=False),
    Column("owner", Ordered),
    Column("name", Ordered, nullable=False),
    Column("created", Double, nullable=False),
    Column("ended", Double),
    Column("server", Ordered),  # who looks after it
    Column("scope", Ordered),  # of the newest attempt
    Column("retry_at", Double),
    Column("attempt", Integer, nullable=False),  # number of the newest one, 0: none
    Column("max_runtime_s", Double, nullable=False),
    Column("cpu_cores", Double, nullable=False),
    Column("ram_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("notes", Text),  # JSON array of strings
    Column("tenant", Ordered),  # of the owner
    Column("workflow", BigInteger),  # workflows.seq of the one that it is part of
    UniqueConstraint("id", name="uq_tasks_id"),
)

NAME_KEY = func.substr(tasks.c.name, literal_column("1"), literal_column(str(NAME_INDEXED)))


def _partial(name: str, table: Table, columns: tuple[str, ...], where: str) -> Index:
    condition: ColumnElement[bool] = literal_column(where)
    return Index(
        name,
        *(table.c[column] for column in columns),
        sqlite_where=condition,
        postgresql_where=condition,
    )


Index("ix_tasks_state", tasks.c.state, tasks.c.seq)
Index("ix_tasks_name", NAME_KEY, tasks.c.seq)
_partial("ix_tasks_owner", tasks, ("owner", "seq"), "owner IS NOT NULL")
_partial("ix_tasks_tenant", tasks, ("tenant", "seq"), "tenant IS NOT NULL")
_partial("ix_tasks_server", tasks, ("server",), "server IS NOT NULL")
_partial("ix_tasks_retry", tasks, ("retry_at",), "retry_at IS NOT NULL")
_partial("ix_tasks_ended", tasks, ("ended",), "ended IS NOT NULL")

docs = Table(
    "docs",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("document", LargeBinary, nullable=False),
)

sealed = Table(
    "sealed",
    metadata,
    # Of tasks that have not ended and whose URLs hold secrets.
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("secrets", LargeBinary, nullable=False),
)

tags = Table(
    "tags",
    metadata,
    Column("key", Ordered, nullable=False),
    Column("value", Ordered, nullable=False),  # a null is stored as ''
    Column("seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("key", "value", "seq", name="pk_tags"),
    sqlite_with_rowid=False,
)
Index("ix_tags_key", tags.c.key, tags.c.seq)


def stored_tag(text: str) -> str:
    """How a tag's key or value is kept in the tags table."""
    if len(text) * 4 <= _TAG_BYTES:
        return text
    raw = text.encode()
    if len(raw) <= _TAG_BYTES:
        return text
    return "sha256:" + hashlib.sha256(raw).hexdigest()


attempts = Table(
    "attempts",
    metadata,
    Column("seq", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Column("key", Ordered, nullable=False),
    Column("scope", Ordered),  # NULL: it was never to run anywhere
    Column("released", Boolean, nullable=False),
    Column("discarded", Boolean, nullable=False),
    Column("started", Double, nullable=False),
    Column("ended", Double),  # when the task ended
    Column("cpu_cores", Double, nullable=False),
    Column("ram_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("seen_events", Integer, nullable=False),
    Column("handle", LargeBinary),  # JSON object
    Column("log", LargeBinary, nullable=False),
    Column("cost", BigInteger),  # billionths of a US dollar; NULL: unknown
    PrimaryKeyConstraint("seq", "number", name="pk_attempts"),
    UniqueConstraint("key", name="uq_attempts_key"),
)
_partial("ix_attempts_live", attempts, ("scope", "seq"), "NOT released")
_partial("ix_attempts_kept", attempts, ("scope", "ended"), "NOT discarded AND ended IS NOT NULL")
_partial("ix_attempts_cost", attempts, ("seq", "cost"), "cost IS NOT NULL")

# As text, because SQLAlchemy writes conditions on booleans otherwise for SQLite, which uses a
# partial index only for the very words of its definition.
UNRELEASED: ColumnElement[bool] = literal_column("NOT attempts.released")
UNDISCARDED: ColumnElement[bool] = literal_column("NOT attempts.discarded")

events = Table(
    "events",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("task_id", Ordered, nullable=False),
    Column("state", Ordered, nullable=False),
    Column("time", Double, nullable=False),
    Column("owner", Ordered),
    Column("tenant", Ordered),
)
Index("ix_events_seq", events.c.seq, events.c.number)
_partial("ix_events_owner", events, ("owner", "number"), "owner IS NOT NULL")
_partial("ix_events_tenant", events, ("tenant", "number"), "tenant IS NOT NULL")

servers = Table(
    "servers",
    metadata,
    Column("id", Ordered, primary_key=True),
    Column("scope", Ordered, nullable=False),
    Column("lease_until", Double, nullable=False),
)

state_counts = Table(
    "state_counts",
    metadata,
    Column("state", Ordered, primary_key=True),
    Column("tasks", BigInteger, nullable=False),
)

workflows = Table(
    "workflows",
    metadata,
    # The tasks of one owner that carry one workflow's id, counted where each of them changes.
    Column("seq", Number, primary_key=True, autoincrement=False),  # of its first task
    Column("id", Ordered, nullable=False),
    Column("name", Ordered, nullable=False),
    Column("submitter", Ordered, nullable=False),
    Column("owner", Ordered),
    Column("tenant", Ordered),
    Column("first_activity", Double, nullable=False),
    Column("last_activity", Double, nullable=False),
    Column("cost", BigInteger),  # of all its attempts, as theirs
    *(Column(state.value.lower(), BigInteger, nullable=False) for state in State),
)
Index("ix_workflows_id", workflows.c.id, workflows.c.seq)
_partial("ix_workflows_owner", workflows, ("owner", "seq"), "owner IS NOT NULL")
_partial("ix_workflows_tenant", workflows, ("tenant", "seq"), "tenant IS NOT NULL")

spending = Table(
    "spending",
    metadata,
    # A budgets.Purse, and what was spent under it.
    Column("kind", Ordered, nullable=False),
    Column("key", Ordered, nullable=False),
    Column("period", Ordered, nullable=False),
    Column("value", Ordered, nullable=False),
    Column("cost", BigInteger, nullable=False),  # billionths of a US dollar
    PrimaryKeyConstraint("kind", "key", "period", "value", name="pk_spending"),
    sqlite_with_rowid=False,
)
_partial("ix_spending_past", spending, ("period",), "period != ''")

pings = Table(
    "pings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Ordered, primary_key=True),  # the part of the token that names it
    Column("user", Ordered, nullable=False),
    Column("hash", LargeBinary, nullable=False),  # SHA-256 of the token
    Column("roles", Text, nullable=False),  # separated by spaces
    Column("created", Double, nullable=False),
    Column("expires", Double),  # NULL: never
    Column("last_used", Double),  # written at most once a day
)

settings = Table(
    "settings",
    metadata,
    # Of all servers on this database. Neither value nor sealed: the setting was forgotten.
    Column("name", Ordered, primary_key=True),
    Column("version", BigInteger, nullable=False),  # of the table, as of the write of this row
    Column("value", Text),
    Column("sealed", LargeBinary),  # of a secret one
)

provision_runs = Table(
    "provision_runs",
    metadata,
    Column("id", Ordered, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("lease_until", Double, nullable=False),  # 0: nobody works on it
    Column("document", LargeBinary, nullable=False),  # provisioning.Run as JSON
)

identity = Table("identity", metadata, Column("id", Ordered, primary_key=True))
"""One row: what tells this database from every other one, made with it."""

sealing_key = Table("sealing_key", metadata, Column("name", Ordered, primary_key=True))
"""At most one row: tells the key that secrets are sealed with from others, and nothing of it."""
