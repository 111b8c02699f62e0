"""The first ledger: nodes, blobs, releases, updates and the audit chain.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQLITE_GUARDS = (
    "CREATE TRIGGER audit_keep_update BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit chain is append-only'); END",
    "CREATE TRIGGER audit_keep_delete BEFORE DELETE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit chain is append-only'); END",
)
_POSTGRESQL_GUARDS = (
    "CREATE FUNCTION audit_keep() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit chain is append-only'; END $$",
    "CREATE TRIGGER audit_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_keep()",
)


def upgrade() -> None:
    """Create every table."""
    _create_nodes()
    _create_blobs()
    _create_models()
    _create_updates()
    _create_audit()


def downgrade() -> None:
    """Refuse: the ledger is evidence, and going back would delete it.

    Raises
    ------
    NotImplementedError
        Always.
    """
    raise NotImplementedError("the first ledger cannot be taken back; restore a backup instead")


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("previous_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit"),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.execute(
        sa.text("INSERT INTO audit_head (id, sequence, hash) VALUES (1, 0, :first)").bindparams(
            first="0" * 64
        )
    )
    guards = _SQLITE_GUARDS if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL_GUARDS
    for statement in guards:
        op.execute(statement)


def _create_nodes() -> None:
    op.create_table(
        "node",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("app", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_node"),
        sa.UniqueConstraint("key_id", name="uq_node_key_id"),
    )
    op.create_index("ix_node_name", "node", ["name"], unique=False)
    op.create_table(
        "seen_token",
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "token_id", name="pk_seen_token"),
    )
    op.create_index("ix_seen_token_expires_at", "seen_token", ["expires_at"], unique=False)
    op.create_table(
        "enrolment_code",
        sa.Column("code_sha256", sa.String(), nullable=False),
        sa.Column("node_name", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("node_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_enrolment_code_node_id"),
        sa.PrimaryKeyConstraint("code_sha256", name="pk_enrolment_code"),
    )


def _create_blobs() -> None:
    op.create_table(
        "blob",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_blob"),
    )
    op.create_table(
        "upload",
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_upload_node_id"),
        sa.PrimaryKeyConstraint("node_id", "sha256", name="pk_upload"),
    )


def _create_models() -> None:
    op.create_table(
        "family",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("arch_id", sa.String(), nullable=False),
        sa.Column("keys_digest", sa.String(), nullable=False),
        sa.Column("entries_json", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_family"),
    )
    op.create_table(
        "model_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("ring", sa.String(), nullable=False),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("manifest_sha256", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["blob_sha256"], ["blob.sha256"], name="fk_model_version_blob_sha256"),
        sa.ForeignKeyConstraint(["family"], ["family.name"], name="fk_model_version_family"),
        sa.ForeignKeyConstraint(["parent_id"], ["model_version.id"], name="fk_model_version_parent_id"),
        sa.PrimaryKeyConstraint("id", name="pk_model_version"),
        sa.UniqueConstraint("family", "version", name="uq_model_version_family_version"),
        sa.UniqueConstraint("parent_id", name="uq_model_version_parent_id"),
    )
    op.create_index("ix_model_version_blob_sha256", "model_version", ["blob_sha256"], unique=False)


def _create_updates() -> None:
    op.create_table(
        "update_rec",
        sa.Column("update_id", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("base_version", sa.Integer(), nullable=False),
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("manifest_sha256", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("norm", sa.Float(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["blob_sha256"], ["blob.sha256"], name="fk_update_rec_blob_sha256"),
        sa.ForeignKeyConstraint(["family"], ["family.name"], name="fk_update_rec_family"),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_update_rec_node_id"),
        sa.PrimaryKeyConstraint("update_id", name="pk_update_rec"),
        sa.UniqueConstraint("node_id", "nonce", name="uq_update_rec_node_id_nonce"),
    )
    op.create_index("ix_update_rec_state", "update_rec", ["state"], unique=False)
    op.create_table(
        "merge_member",
        sa.Column("update_id", sa.String(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("staleness", sa.Integer(), nullable=False),
        sa.Column("clip_factor", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["update_id"], ["update_rec.update_id"], name="fk_merge_member_update_id"),
        sa.ForeignKeyConstraint(["version_id"], ["model_version.id"], name="fk_merge_member_version_id"),
        sa.PrimaryKeyConstraint("update_id", name="pk_merge_member"),
    )
    op.create_index("ix_merge_member_version_id", "merge_member", ["version_id"], unique=False)
