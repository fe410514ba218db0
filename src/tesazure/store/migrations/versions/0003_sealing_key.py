"""Which key the secrets of tasks' URLs are sealed with."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table of the key's name, which the next server to start notes."""
    op.create_table("sealing_key", sa.Column("name", TEXT, primary_key=True))
