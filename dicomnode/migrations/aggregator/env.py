"""Alembic's entry point for the aggregator's ledger; the connection comes from ``Database.open``."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    render_as_batch=True,
)
context.run_migrations()
