"""A version keeps what it was made of; a switch is automatic or a person's; a model can be locked."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TEXTS = (
    ("case_digests_json", sa.Text(), "[]"),
    ("recipe_json", sa.Text(), ""),
    ("environment_json", sa.Text(), ""),
    ("run_folder", sa.String(), ""),
    ("advice", sa.Text(), ""),
)


def upgrade() -> None:
    """Apply: of the switches so far, those of the gate were automatic."""
    with op.batch_alter_table("model") as model:
        for name, kind, default in _TEXTS:
            model.add_column(sa.Column(name, kind, nullable=False, server_default=default))
    with op.batch_alter_table("model") as model:
        for name, kind, _ in _TEXTS:
            model.alter_column(name, existing_type=kind, server_default=None)
    with op.batch_alter_table("model_switch") as switch:
        switch.add_column(sa.Column("is_automatic", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE model_switch SET is_automatic = true WHERE \"by\" = 'gate'")
    with op.batch_alter_table("model_switch") as switch:
        switch.alter_column("is_automatic", existing_type=sa.Boolean(), server_default=None)
    op.create_table(
        "model_lock",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_lock")),
    )


def downgrade() -> None:
    """Undo; locks are forgotten."""
    op.drop_table("model_lock")
    with op.batch_alter_table("model_switch") as switch:
        switch.drop_column("is_automatic")
    with op.batch_alter_table("model") as model:
        for name, _, _ in _TEXTS:
            model.drop_column(name)
