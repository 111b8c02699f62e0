"""A series may be here only because a correction needed its images."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: every series known so far came by itself."""
    with op.batch_alter_table("series") as series:
        series.add_column(sa.Column("fetched_from", sa.String(), nullable=False, server_default=""))
        series.add_column(sa.Column("fetch_open_until", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("series") as series:
        series.alter_column("fetched_from", existing_type=sa.String(), server_default=None)


def downgrade() -> None:
    """Undo; fetched series stay set aside with their reason."""
    with op.batch_alter_table("series") as series:
        series.drop_column("fetch_open_until")
        series.drop_column("fetched_from")
