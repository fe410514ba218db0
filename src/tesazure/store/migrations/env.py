"""Alembic's entry: runs the revisions on the connection, and in the transaction, of `schema`."""

from alembic import context

from tesazure.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # The caller has begun a transaction, and commits it.
    transactional_ddl=False,
)
context.run_migrations()
