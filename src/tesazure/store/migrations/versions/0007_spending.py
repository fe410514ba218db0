"""What was spent, by purse. Nothing was before: no backend knew a price."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Costs are found beside the logs that tell them, and counted."""
    op.create_table(
        "spending",
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("period", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", "period", "value", name="pk_spending"),
        sqlite_with_rowid=False,
    )
    _partial("ix_spending_past", "spending", ["period"], "period != ''")
    _partial("ix_attempts_cost", "attempts", ["seq", "cost"], "cost IS NOT NULL")


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
