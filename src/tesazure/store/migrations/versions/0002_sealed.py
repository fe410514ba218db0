"""Secrets of tasks' URLs, sealed, apart from the documents."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table of sealed secrets."""
    op.create_table(
        "sealed",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("secrets", sa.LargeBinary, nullable=False),
    )
