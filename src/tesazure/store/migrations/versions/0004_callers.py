"""Tenants of tasks and events, and API tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Older tasks have no owner, and so no tenant."""
    op.add_column("tasks", sa.Column("tenant", TEXT))
    condition = sa.text("tenant IS NOT NULL")
    op.create_index(
        "ix_tasks_tenant",
        "tasks",
        ["tenant", "seq"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
    op.add_column("events", sa.Column("tenant", TEXT))
    op.create_table(
        "api_tokens",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("user", TEXT, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.Column("last_used", sa.Double),
    )
