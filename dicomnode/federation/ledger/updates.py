"""Updates that sites announced, and how each stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from dicomnode.domain import Sha256
from dicomnode.errors import UpdateRejectedError
from dicomnode.federation.ledger import audit
from dicomnode.federation.ledger.database import Database
from dicomnode.federation.ledger.tables import Blob, MergeMember, ModelVersion, Node, UpdateRecord
from dicomnode.federation.manifest import UpdateManifest, UpdateState

NORM_HISTORY = 50
_STATES_WITH_NORM = (UpdateState.ACCEPTED, UpdateState.MERGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRow:
    """An update as the ledger knows it."""

    update_id: str
    node_id: str
    family: str
    state: UpdateState
    code: str  # empty, or the stable reason of a refusal
    reason: str
    merged_version: int | None
    envelope: bytes


class UpdateRows:
    """The life of updates up to their merge; the merge itself is in :mod:`releases`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def announce(
        self, manifest: UpdateManifest, *, envelope: bytes, manifest_sha256: Sha256, now: datetime
    ) -> UpdateRow:
        """Record an update whose blob is complete; the same manifest again gives its present state.

        Raises
        ------
        UpdateRejectedError
            ``update_id_reused`` or ``nonce_reused`` for another manifest, ``blob_missing``,
            ``duplicate_update`` when the node offers the same weights a second time.
        """
        try:
            with self._database.writing() as session:
                known = session.get(UpdateRecord, manifest.update_id)
                if known is None:
                    known = _insert(session, manifest, envelope, manifest_sha256, now)
                elif known.manifest_sha256 != manifest_sha256:
                    raise UpdateRejectedError(
                        f"update {manifest.update_id} was announced before with another manifest",
                        code="update_id_reused",
                    )
                return _row(session, known)
        except IntegrityError as error:
            raise UpdateRejectedError(
                "this nonce was used by an earlier update of the node", code="nonce_reused"
            ) from error

    def get(self, update_id: str) -> UpdateRow | None:
        """Find an update."""
        with self._database.reading() as session:
            record = session.get(UpdateRecord, update_id)
            return None if record is None else _row(session, record)

    def in_state(self, state: UpdateState) -> list[UpdateRow]:
        """Return the updates in a state, sorted by update id, which is the order of their making."""
        with self._database.reading() as session:
            query = (
                select(UpdateRecord).where(UpdateRecord.state == state).order_by(col(UpdateRecord.update_id))
            )
            return [_row(session, record) for record in session.exec(query)]

    def decide(
        self,
        update_id: str,
        state: UpdateState,
        *,
        now: datetime,
        code: str = "",
        reason: str = "",
        norm: float | None = None,
    ) -> None:
        """Record the verdict about an update that waits; one that was decided meanwhile is left alone."""
        with self._database.writing() as session:
            record = session.get_one(UpdateRecord, update_id, with_for_update=True)
            if record.state not in (UpdateState.ANNOUNCED, UpdateState.ACCEPTED):
                return
            record.state, record.code, record.reason, record.decided_at = state, code, reason, now
            record.norm = record.norm if norm is None else norm
            session.add(record)
            detail = {"update_id": update_id, "code": code, "reason": reason}
            audit.append(session, f"update_{state}", actor="aggregator", detail=detail, now=now)

    def recent_norms(self, family: str) -> tuple[float, ...]:
        """Return the norms of the last accepted updates of a family, at most 50, the newest first."""
        with self._database.reading() as session:
            query = (
                select(UpdateRecord.norm)
                .where(
                    UpdateRecord.family == family,
                    col(UpdateRecord.state).in_(_STATES_WITH_NORM),
                    col(UpdateRecord.norm).is_not(None),
                )
                .order_by(col(UpdateRecord.decided_at).desc(), col(UpdateRecord.update_id).desc())
                .limit(NORM_HISTORY)
            )
            return tuple(norm for norm in session.exec(query) if norm is not None)

    def counts(self) -> Mapping[str, int]:
        """Count the updates per state."""
        with self._database.reading() as session:
            rows = session.exec(
                select(UpdateRecord.state, func.count()).group_by(col(UpdateRecord.state))
            ).all()
        return MappingProxyType(dict.fromkeys(UpdateState, 0) | dict(rows))


def _insert(
    session: Session, manifest: UpdateManifest, envelope: bytes, manifest_sha256: Sha256, now: datetime
) -> UpdateRecord:
    blob = session.get(Blob, manifest.blob.sha256)
    if blob is None or blob.size != manifest.blob.size:
        raise UpdateRejectedError(
            f"blob {manifest.blob.sha256} of {manifest.blob.size} bytes is not here; upload it first",
            code="blob_missing",
        )
    # The row lock on the node puts two announcements of one node in line.
    session.exec(select(Node).where(Node.id == manifest.node_id).with_for_update()).one()
    _check_new_weights(session, manifest)
    record = UpdateRecord(
        update_id=manifest.update_id,
        node_id=manifest.node_id,
        family=manifest.family,
        base_version=manifest.base.version,
        blob_sha256=manifest.blob.sha256,
        kind=manifest.kind,
        nonce=manifest.nonce,
        manifest_sha256=manifest_sha256,
        envelope=envelope,
        state=UpdateState.ANNOUNCED,
        received_at=now,
    )
    session.add(record)
    session.flush()
    detail = {
        "update_id": manifest.update_id,
        "manifest": manifest_sha256,
        "blob": manifest.blob.sha256,
    }
    audit.append(session, "update_announced", actor=manifest.node_id, detail=detail, now=now)
    return record


def _check_new_weights(session: Session, manifest: UpdateManifest) -> None:
    query = select(UpdateRecord.update_id).where(
        UpdateRecord.node_id == manifest.node_id,
        UpdateRecord.family == manifest.family,
        UpdateRecord.blob_sha256 == manifest.blob.sha256,
        UpdateRecord.state != UpdateState.REJECTED,
    )
    earlier = session.exec(query.limit(1)).first()
    if earlier is not None:
        raise UpdateRejectedError(
            f"the same weights were offered before as update {earlier}", code="duplicate_update"
        )


def _row(session: Session, record: UpdateRecord) -> UpdateRow:
    version = session.exec(
        select(ModelVersion.version)
        .join(MergeMember, col(MergeMember.version_id) == col(ModelVersion.id))
        .where(MergeMember.update_id == record.update_id)
    ).one_or_none()
    return UpdateRow(
        update_id=record.update_id,
        node_id=record.node_id,
        family=record.family,
        state=UpdateState(record.state),
        code=record.code,
        reason=record.reason,
        merged_version=version,
        envelope=record.envelope,
    )
