"""Families and their releases; the one transaction that publishes a merge."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from dicomnode.domain import Sha256
from dicomnode.errors import ConfigError
from dicomnode.federation.ledger import audit
from dicomnode.federation.ledger.database import Database
from dicomnode.federation.ledger.tables import Blob, Family, MergeMember, ModelVersion, UpdateRecord
from dicomnode.federation.ledger.uploads import record_blob
from dicomnode.federation.manifest import BlobRef, UpdateState
from dicomnode.weights import Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRow:
    """What never changes in the releases of a model."""

    name: str
    arch_id: Sha256
    schema: Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """A release as the ledger knows it."""

    id: int
    family: str
    version: int
    blob: BlobRef
    strategy: str
    manifest_sha256: Sha256
    envelope: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMember:
    """An update inside a release to be published, with what became of its weight."""

    update_id: str
    weight: float
    staleness: int
    clip_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A release to be published; its blob is on disk under its final name."""

    family: str
    version: int
    parent: VersionRow | None
    ring: str
    strategy: str
    blob: BlobRef
    manifest_sha256: Sha256
    envelope: bytes
    members: Sequence[NewMember] = ()
    actor: str


class VersionRows:
    """The releases of every family."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register_family(self, family: FamilyRow, *, now: datetime) -> None:
        """Fix the network of a family; registering the same again changes nothing.

        Raises
        ------
        ConfigError
            The family is known with another network or other tensors.
        """
        with self._database.writing() as session:
            known = session.get(Family, family.name)
            if known is None:
                session.add(
                    Family(
                        name=family.name,
                        arch_id=family.arch_id,
                        keys_digest=family.schema.digest,
                        entries_json=json.dumps(family.schema.entries),
                        created_at=now,
                    )
                )
            elif (known.arch_id, known.keys_digest) != (family.arch_id, family.schema.digest):
                raise ConfigError(
                    f"family {family.name!r} has another network (arch {known.arch_id[:12]}, expected "
                    f"{family.arch_id[:12]}); publish the model under a new name"
                )

    def family(self, name: str) -> FamilyRow | None:
        """Find a family."""
        with self._database.reading() as session:
            known = session.get(Family, name)
            if known is None:
                return None
            entries = tuple((key, kind, tuple(shape)) for key, kind, shape in json.loads(known.entries_json))
            return FamilyRow(name=known.name, arch_id=Sha256(known.arch_id), schema=Schema(entries=entries))

    def head(self, family: str, *, ring: str | None = None) -> VersionRow | None:
        """Find the newest release of a family, of a ring if one is named."""
        with self._database.reading() as session:
            query = select(ModelVersion).where(ModelVersion.family == family)
            if ring is not None:
                query = query.where(ModelVersion.ring == ring)
            newest = session.exec(query.order_by(col(ModelVersion.version).desc()).limit(1)).one_or_none()
            return None if newest is None else _row(session, newest)

    def get(self, family: str, version: int) -> VersionRow | None:
        """Find one release."""
        with self._database.reading() as session:
            query = select(ModelVersion).where(ModelVersion.family == family, ModelVersion.version == version)
            found = session.exec(query).one_or_none()
            return None if found is None else _row(session, found)

    def heads(self) -> list[VersionRow]:
        """Return the newest release of every family."""
        with self._database.reading() as session:
            names = list(session.exec(select(Family.name).order_by(col(Family.name))))
        found = [self.head(name) for name in names]
        return [row for row in found if row is not None]

    def publish(self, release: NewVersion, *, now: datetime) -> bool:
        """Publish a release and end its members' wait, all in one transaction.

        Returns
        -------
            ``False``, with nothing changed, when another release took this parent first, or a member was
            merged or withdrawn meanwhile: compute again from the new head.
        """
        try:
            with self._database.writing() as session:
                record_blob(session, Sha256(release.blob.sha256), size=release.blob.size, now=now)
                version = _insert(session, release, now=now)
                for member in sorted(release.members, key=lambda one: one.update_id):
                    _merge_member(session, member, version_id=version, now=now)
                _record(session, release, now=now)
        except (IntegrityError, _MemberGoneError):
            return False
        return True


class _MemberGoneError(Exception):
    """An update is no longer waiting to be merged."""


def _insert(session: Session, release: NewVersion, *, now: datetime) -> int:
    version = ModelVersion(
        family=release.family,
        version=release.version,
        parent_id=None if release.parent is None else release.parent.id,
        blob_sha256=release.blob.sha256,
        ring=release.ring,
        strategy=release.strategy,
        manifest_sha256=release.manifest_sha256,
        envelope=release.envelope,
        created_at=now,
    )
    session.add(version)
    session.flush()
    if version.id is None:
        raise RuntimeError("the database gave no key to a release")
    return version.id


def _merge_member(session: Session, member: NewMember, *, version_id: int, now: datetime) -> None:
    update = session.get_one(UpdateRecord, member.update_id, with_for_update=True)
    if update.state != UpdateState.ACCEPTED:
        raise _MemberGoneError(member.update_id)
    update.state, update.decided_at = UpdateState.MERGED, now
    session.add(update)
    session.add(
        MergeMember(
            update_id=member.update_id,
            version_id=version_id,
            weight=member.weight,
            staleness=member.staleness,
            clip_factor=member.clip_factor,
        )
    )
    session.flush()


def _record(session: Session, release: NewVersion, *, now: datetime) -> None:
    detail: dict[str, JsonValue] = {
        "family": release.family,
        "version": release.version,
        "manifest": release.manifest_sha256,
        "blob": release.blob.sha256,
        "strategy": release.strategy,
        "updates": [member.update_id for member in release.members],
        "gate": "not run at the aggregator",
    }
    audit.append(session, "release_published", actor=release.actor, detail=detail, now=now)


def _row(session: Session, version: ModelVersion) -> VersionRow:
    blob = session.get_one(Blob, version.blob_sha256)
    if version.id is None:
        raise RuntimeError("a stored release has no key")
    return VersionRow(
        id=version.id,
        family=version.family,
        version=version.version,
        blob=BlobRef(sha256=blob.sha256, size=blob.size),
        strategy=version.strategy,
        manifest_sha256=Sha256(version.manifest_sha256),
        envelope=version.envelope,
        created_at=version.created_at,
    )
