"""How Alembic reaches the tables of a site: on the connection that the store (or a test) hands over."""

from alembic import context

from dicomnode.store.tables import SiteTable

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SiteTable.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
