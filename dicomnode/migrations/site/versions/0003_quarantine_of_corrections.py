"""Corrections have a state, doubts and a person's decision; labels have a confidence."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TEXTS = ("state", "stack", "doubts_json", "decision", "decided_by")


def upgrade() -> None:
    """Apply: what made a case was kept, everything else was only recorded."""
    with op.batch_alter_table("correction") as correction:
        correction.add_column(sa.Column("instance_id", sa.Integer(), nullable=True))
        for name in _TEXTS:
            kind = sa.Text() if name.endswith("_json") else sa.String()
            correction.add_column(sa.Column(name, kind, nullable=True))
    op.execute(
        "UPDATE correction SET stack = '', doubts_json = '[]', decision = '', decided_by = '', "
        "state = CASE WHEN case_id IS NULL THEN 'recorded' ELSE 'kept' END, "
        "instance_id = (SELECT max(instance.id) FROM instance WHERE instance.role = 'segmentation' "
        "AND instance.sop_instance_uid = correction.sop_instance_uid)"
    )
    _name_variants()
    with op.batch_alter_table("correction") as correction:
        for name in _TEXTS:
            kind = sa.Text() if name.endswith("_json") else sa.String()
            correction.alter_column(name, existing_type=kind, nullable=False)
        correction.create_foreign_key(op.f("fk_correction_instance_id"), "instance", ["instance_id"], ["id"])
        correction.create_index(op.f("ix_correction_instance_id"), ["instance_id"], unique=False)
        correction.create_index(op.f("ix_correction_state"), ["state"], unique=False)
    with op.batch_alter_table("correction_score") as score:
        score.add_column(sa.Column("confidence", sa.Float(), nullable=False, server_default="1"))
    with op.batch_alter_table("correction_score") as score:
        score.alter_column("confidence", existing_type=sa.Float(), server_default=None)


def _name_variants() -> None:
    """Find the very bytes behind each row: the digest of its job tells variants under one UID apart."""
    connection = op.get_bind()
    files = connection.execute(
        sa.text("SELECT id, sop_instance_uid, sha256 FROM instance WHERE role = 'segmentation'")
    ).all()
    named = [
        {"id": number, "digest": hashlib.sha256(f"{uid}:{sha256}".encode()).hexdigest()}
        for number, uid, sha256 in files
    ]
    if named:
        connection.execute(sa.text("UPDATE correction SET instance_id = :id WHERE digest = :digest"), named)


def downgrade() -> None:
    """Undo; corrections in quarantine stay on record, and their doubts are forgotten."""
    with op.batch_alter_table("correction_score") as score:
        score.drop_column("confidence")
    with op.batch_alter_table("correction") as correction:
        correction.drop_index(op.f("ix_correction_state"))
        correction.drop_index(op.f("ix_correction_instance_id"))
        correction.drop_constraint(op.f("fk_correction_instance_id"), type_="foreignkey")
        for name in ("instance_id", *_TEXTS):
            correction.drop_column(name)
