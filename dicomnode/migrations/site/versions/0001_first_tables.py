"""The first tables of a site."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _create_audit()
    _create_correction()
    _create_enrolment()
    _create_instance()
    _create_job()
    _create_known_release()
    _create_model()
    _create_outbox()
    _create_result()
    _create_series()
    _create_training_case()
    _create_correction_score()
    _create_delivery()
    _create_model_switch()
    _create_result_label()


def downgrade() -> None:
    """Undo."""
    for table in reversed(TABLES):
        op.drop_table(table)


TABLES = (
    "audit",
    "correction",
    "enrolment",
    "instance",
    "job",
    "known_release",
    "model",
    "outbox",
    "result",
    "series",
    "training_case",
    "correction_score",
    "delivery",
    "model_switch",
    "result_label",
)


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_event"), "audit", ["event"], unique=False)


def _create_correction() -> None:
    op.create_table(
        "correction",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("recognition", sa.String(), nullable=False),
        sa.Column("source_series_uid", sa.String(), nullable=True),
        sa.Column("result_sop_uid", sa.String(), nullable=True),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=True),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("reasons_json", sa.Text(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=True),
        sa.Column("patient_key", sa.String(), nullable=True),
        sa.Column("split", sa.String(), nullable=True),
        sa.Column("corrected_slices", sa.Integer(), nullable=False),
        sa.Column("replaced", sa.Boolean(), nullable=False),
        sa.Column("trained_in", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_correction")),
        sa.UniqueConstraint("digest", name=op.f("uq_correction_digest")),
    )
    op.create_index(op.f("ix_correction_case_id"), "correction", ["case_id"], unique=False)
    op.create_index(op.f("ix_correction_sop_instance_uid"), "correction", ["sop_instance_uid"], unique=False)
    op.create_index(
        op.f("ix_correction_source_series_uid"), "correction", ["source_series_uid"], unique=False
    )


def _create_enrolment() -> None:
    op.create_table(
        "enrolment",
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("aggregator_name", sa.String(), nullable=False),
        sa.Column("aggregator_key", sa.Text(), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("url", name=op.f("pk_enrolment")),
    )


def _create_instance() -> None:
    op.create_table(
        "instance",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("sop_instance_uid", "sha256", name=op.f("uq_instance_sop_instance_uid_sha256")),
    )
    op.create_index(op.f("ix_instance_path"), "instance", ["path"], unique=False)
    op.create_index(
        op.f("ix_instance_series_instance_uid"), "instance", ["series_instance_uid"], unique=False
    )


def _create_job() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("run_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("traceback", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("kind", "digest", name=op.f("uq_job_kind_digest")),
    )
    op.create_index(op.f("ix_job_kind_subject"), "job", ["kind", "subject"], unique=False)
    op.create_index(op.f("ix_job_state_run_after"), "job", ["state", "run_after"], unique=False)


def _create_known_release() -> None:
    op.create_table(
        "known_release",
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("manifest_json", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("family", "version", name=op.f("pk_known_release")),
    )


def _create_model() -> None:
    op.create_table(
        "model",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=True),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("gate_report_json", sa.Text(), nullable=False),
        sa.Column("case_ids_json", sa.Text(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("release_version", sa.Integer(), nullable=True),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_model")),
    )
    op.create_index(op.f("ix_model_name"), "model", ["name"], unique=False)
    op.create_index(
        "uq_model_one_current",
        "model",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state = 'current'"),
        postgresql_where=sa.text("state = 'current'"),
    )


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("update_id", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=False),
        sa.Column("base_release", sa.Integer(), nullable=False),
        sa.Column("blob_path", sa.String(), nullable=False),
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("blob_bytes", sa.BigInteger(), nullable=False),
        sa.Column("manifest_json", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_answer", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("update_id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("model_version", name=op.f("uq_outbox_model_version")),
    )
    op.create_index(op.f("ix_outbox_state"), "outbox", ["state"], unique=False)


def _create_result() -> None:
    op.create_table(
        "result",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("source_series_uid", sa.String(), nullable=False),
        sa.Column("source_digest", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=False),
        sa.Column("label_table_sha256", sa.String(), nullable=False),
        sa.Column("voxels_sha256", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.Column("seconds_json", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_result_sop_instance_uid")),
    )
    op.create_index(op.f("ix_result_series_instance_uid"), "result", ["series_instance_uid"], unique=False)
    op.create_index(op.f("ix_result_source_series_uid"), "result", ["source_series_uid"], unique=False)


def _create_series() -> None:
    op.create_table(
        "series",
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model_version", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("series_instance_uid", name=op.f("pk_series")),
    )
    op.create_index(
        op.f("ix_series_state_last_received_at"), "series", ["state", "last_received_at"], unique=False
    )
    op.create_index(op.f("ix_series_study_instance_uid"), "series", ["study_instance_uid"], unique=False)
    op.create_index(op.f("ix_series_updated_at"), "series", ["updated_at"], unique=False)


def _create_training_case() -> None:
    op.create_table(
        "training_case",
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_training_case")),
    )
    op.create_index(
        op.f("ix_training_case_series_instance_uid"), "training_case", ["series_instance_uid"], unique=False
    )


def _create_correction_score() -> None:
    op.create_table(
        "correction_score",
        sa.Column("correction_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("dice", sa.Float(), nullable=False),
        sa.Column("edited_slices_json", sa.Text(), nullable=False),
        sa.Column("prediction_voxels", sa.BigInteger(), nullable=False),
        sa.Column("correction_voxels", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["correction_id"], ["correction.id"], name=op.f("fk_correction_score_correction_id")
        ),
        sa.PrimaryKeyConstraint("correction_id", "label", name=op.f("pk_correction_score")),
    )


def _create_delivery() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_sop_uid", sa.String(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["result_sop_uid"], ["result.sop_instance_uid"], name=op.f("fk_delivery_result_sop_uid")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "result_sop_uid", "destination", name=op.f("uq_delivery_result_sop_uid_destination")
        ),
    )


def _create_model_switch() -> None:
    op.create_table(
        "model_switch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("previous", sa.String(), nullable=True),
        sa.Column("is_rollback", sa.Boolean(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["model.version"], name=op.f("fk_model_switch_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_switch")),
    )
    op.create_index(op.f("ix_model_switch_name"), "model_switch", ["name"], unique=False)


def _create_result_label() -> None:
    op.create_table(
        "result_label",
        sa.Column("result_sop_uid", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("voxels", sa.BigInteger(), nullable=False),
        sa.Column("millilitres", sa.Float(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("tracking_uid", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_sop_uid"], ["result.sop_instance_uid"], name=op.f("fk_result_label_result_sop_uid")
        ),
        sa.PrimaryKeyConstraint("result_sop_uid", "label", name=op.f("pk_result_label")),
    )
    op.create_index(op.f("ix_result_label_tracking_uid"), "result_label", ["tracking_uid"], unique=False)
