"""The first schema."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
STATES = (
    "UNKNOWN",
    "QUEUED",
    "INITIALIZING",
    "RUNNING",
    "PAUSED",
    "COMPLETE",
    "EXECUTOR_ERROR",
    "SYSTEM_ERROR",
    "CANCELED",
    "CANCELING",
    "PREEMPTED",
)


def upgrade() -> None:
    """Make all tables and indexes."""
    op.create_table(
        "tasks",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("owner", TEXT),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("server", TEXT),
        sa.Column("scope", TEXT),
        sa.Column("retry_at", sa.Double),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("max_runtime_s", sa.Double, nullable=False),
        sa.Column("cpu_cores", sa.Double, nullable=False),
        sa.Column("ram_bytes", sa.BigInteger, nullable=False),
        sa.Column("disk_bytes", sa.BigInteger, nullable=False),
        sa.Column("notes", sa.Text),
        sa.UniqueConstraint("id", name="uq_tasks_id"),
    )
    op.create_index("ix_tasks_state", "tasks", ["state", "seq"])
    op.create_index("ix_tasks_name", "tasks", [sa.text("substr(name, 1, 128)"), "seq"])
    _partial("ix_tasks_owner", "tasks", ["owner", "seq"], "owner IS NOT NULL")
    _partial("ix_tasks_server", "tasks", ["server"], "server IS NOT NULL")
    _partial("ix_tasks_retry", "tasks", ["retry_at"], "retry_at IS NOT NULL")
    _partial("ix_tasks_ended", "tasks", ["ended"], "ended IS NOT NULL")
    op.create_table(
        "docs",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tags",
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", "value", "seq", name="pk_tags"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tags_key", "tags", ["key", "seq"])
    op.create_table(
        "attempts",
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("scope", TEXT),
        sa.Column("released", sa.Boolean, nullable=False),
        sa.Column("discarded", sa.Boolean, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("cpu_cores", sa.Double, nullable=False),
        sa.Column("ram_bytes", sa.BigInteger, nullable=False),
        sa.Column("disk_bytes", sa.BigInteger, nullable=False),
        sa.Column("seen_events", sa.Integer, nullable=False),
        sa.Column("handle", sa.LargeBinary),
        sa.Column("log", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("seq", "number", name="pk_attempts"),
        sa.UniqueConstraint("key", name="uq_attempts_key"),
    )
    _partial("ix_attempts_live", "attempts", ["scope", "seq"], "NOT released")
    _partial(
        "ix_attempts_kept", "attempts", ["scope", "ended"], "NOT discarded AND ended IS NOT NULL"
    )
    op.create_table(
        "events",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("task_id", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("owner", TEXT),
    )
    op.create_index("ix_events_seq", "events", ["seq", "number"])
    op.create_table(
        "servers",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("scope", TEXT, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
    )
    counts = op.create_table(
        "state_counts",
        sa.Column("state", TEXT, primary_key=True),
        sa.Column("tasks", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counts, [{"state": state, "tasks": 0} for state in STATES])
    op.create_table(
        "pings",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Double, nullable=False),
    )
    identity = op.create_table("identity", sa.Column("id", TEXT, primary_key=True))
    op.bulk_insert(identity, [{"id": uuid.uuid4().hex}])


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
