"""A caller that sees its own or its tenant's tasks finds their events among everybody's."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Events of tasks without owner are in neither index."""
    for column in ("owner", "tenant"):
        condition = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"ix_events_{column}",
            "events",
            [column, "number"],
            sqlite_where=condition,
            postgresql_where=condition,
        )
