"""Settings that all servers on this database share."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table of what no server had before."""
    op.create_table(
        "settings",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Text),
        sa.Column("sealed", sa.LargeBinary),
    )
