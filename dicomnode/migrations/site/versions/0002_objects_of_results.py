"""A result is several objects, each with its own deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: the results so far are one BINARY segmentation each, which also is what was sent."""
    _create_result_object()
    op.execute(
        "INSERT INTO result_object "
        "(sop_instance_uid, result_sop_uid, series_instance_uid, form, voxels_sha256, position) "
        "SELECT sop_instance_uid, sop_instance_uid, series_instance_uid, 'seg', voxels_sha256, 0 FROM result"
    )
    with op.batch_alter_table("delivery") as delivery:
        delivery.add_column(sa.Column("object_sop_uid", sa.String(), nullable=True))
    op.execute("UPDATE delivery SET object_sop_uid = result_sop_uid")
    with op.batch_alter_table("delivery") as delivery:
        delivery.alter_column("object_sop_uid", existing_type=sa.String(), nullable=False)
        delivery.drop_constraint(op.f("uq_delivery_result_sop_uid_destination"), type_="unique")
        delivery.create_unique_constraint(
            op.f("uq_delivery_object_sop_uid_destination"), ["object_sop_uid", "destination"]
        )
        delivery.create_foreign_key(
            op.f("fk_delivery_object_sop_uid"), "result_object", ["object_sop_uid"], ["sop_instance_uid"]
        )
        delivery.create_index(op.f("ix_delivery_result_sop_uid"), ["result_sop_uid"], unique=False)


def downgrade() -> None:
    """Undo; what was sent in other forms is forgotten."""
    op.execute("DELETE FROM delivery WHERE object_sop_uid <> result_sop_uid")
    with op.batch_alter_table("delivery") as delivery:
        delivery.drop_index(op.f("ix_delivery_result_sop_uid"))
        delivery.drop_constraint(op.f("fk_delivery_object_sop_uid"), type_="foreignkey")
        delivery.drop_constraint(op.f("uq_delivery_object_sop_uid_destination"), type_="unique")
        delivery.drop_column("object_sop_uid")
        delivery.create_unique_constraint(
            op.f("uq_delivery_result_sop_uid_destination"), ["result_sop_uid", "destination"]
        )
    op.drop_table("result_object")


def _create_result_object() -> None:
    op.create_table(
        "result_object",
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("result_sop_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("form", sa.String(), nullable=False),
        sa.Column("voxels_sha256", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_sop_uid"], ["result.sop_instance_uid"], name=op.f("fk_result_object_result_sop_uid")
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid", name=op.f("pk_result_object")),
    )
    for column in ("result_sop_uid", "series_instance_uid"):
        op.create_index(op.f(f"ix_result_object_{column}"), "result_object", [column], unique=False)
