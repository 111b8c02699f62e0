"""Results and corrections are found by their day."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = ("result", "correction")


def upgrade() -> None:
    """Apply."""
    for table in _TABLES:
        op.create_index(op.f(f"ix_{table}_created_at"), table, ["created_at"], unique=False)


def downgrade() -> None:
    """Undo."""
    for table in _TABLES:
        op.drop_index(op.f(f"ix_{table}_created_at"), table_name=table)
