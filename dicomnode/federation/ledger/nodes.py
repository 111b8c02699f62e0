"""Sites, their keys, their one-time codes and the request tokens they have used."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import JsonValue
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete, select, update

from dicomnode.errors import ConfigError, UpdateRejectedError
from dicomnode.federation import signing
from dicomnode.federation.ledger import audit
from dicomnode.federation.ledger.database import Database
from dicomnode.federation.ledger.tables import EnrolmentCode, Node, SeenToken, UpdateRecord
from dicomnode.federation.manifest import UpdateState
from dicomnode.federation.signing import PublicKey


class NodeStatus(StrEnum):
    """Whether a site may speak."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A site as the ledger knows it."""

    id: str
    name: str
    public_key: PublicKey
    status: NodeStatus
    enrolled_at: datetime
    last_seen_at: datetime | None
    app: str


class NodeRows:
    """The sites of the federation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def invite(self, code: str, *, node_name: str, expires_at: datetime, now: datetime) -> None:
        """Record a one-time code for a site, as a digest.

        Raises
        ------
        ConfigError
            An active site of that name exists.
        """
        with self._database.writing() as session:
            if _active_named(session, node_name) is not None:
                raise ConfigError(f"node {node_name!r} is enrolled already; revoke it first")
            session.add(EnrolmentCode(code_sha256=_digest(code), node_name=node_name, expires_at=expires_at))
            detail = {"node_name": node_name, "expires_at": expires_at.isoformat()}
            audit.append(session, "node_invited", actor="operator", detail=detail, now=now)

    def enrol(
        self, code: str, *, node_name: str, public_key: PublicKey, node_id: str, now: datetime
    ) -> NodeRow:
        """Use up a code and admit the site's key; the same code with the same key gives the same answer.

        Raises
        ------
        UpdateRejectedError
            ``code_unknown``, ``code_used``, ``code_expired``, ``node_name_mismatch``, ``node_name_taken``
            or ``key_in_use``.
        """
        try:
            with self._database.writing() as session:
                invitation = session.get(EnrolmentCode, _digest(code), with_for_update=True)
                if invitation is None:
                    raise UpdateRejectedError("this enrolment code was never given out", code="code_unknown")
                if invitation.node_id is not None:
                    return _enrolled_before(session, invitation.node_id, public_key)
                _check_invitation(session, invitation, node_name=node_name, now=now)
                node = _admit(session, invitation, public_key=public_key, node_id=node_id, now=now)
                return _row(node)
        except IntegrityError as error:
            raise UpdateRejectedError(
                "this key was enrolled before, perhaps for a revoked node; make a new key", code="key_in_use"
            ) from error

    def by_key(self, key_id: str) -> NodeRow | None:
        """Find the site that a key belongs to."""
        with self._database.reading() as session:
            node = session.exec(select(Node).where(Node.key_id == key_id)).one_or_none()
            return None if node is None else _row(node)

    def get(self, node_id: str) -> NodeRow | None:
        """Find a site by its id."""
        with self._database.reading() as session:
            node = session.get(Node, node_id)
            return None if node is None else _row(node)

    def use_token(self, node_id: str, token_id: str, *, keep_until: datetime, now: datetime) -> bool:
        """Record a request token; ``False`` when it was used before."""
        try:
            with self._database.writing() as session:
                session.exec(delete(SeenToken).where(col(SeenToken.expires_at) < now))
                session.add(SeenToken(node_id=node_id, token_id=token_id, expires_at=keep_until))
                session.exec(update(Node).where(col(Node.id) == node_id).values(last_seen_at=now))
        except IntegrityError:
            return False
        return True

    def record_app(self, node_id: str, app: str) -> None:
        """Remember which program version a site runs."""
        with self._database.writing() as session:
            session.exec(update(Node).where(col(Node.id) == node_id).values(app=app))

    def revoke(self, node_id: str, *, now: datetime) -> int:
        """Shut a site out from the next request on, and quarantine what it has waiting.

        Returns
        -------
            Number of updates quarantined.

        Raises
        ------
        ConfigError
            No such site.
        """
        with self._database.writing() as session:
            node = session.get(Node, node_id)
            if node is None:
                raise ConfigError(f"there is no node {node_id!r}; see the status command for the list")
            node.status = NodeStatus.REVOKED
            session.add(node)
            waiting = col(UpdateRecord.state).in_([UpdateState.ANNOUNCED, UpdateState.ACCEPTED])
            outcome = session.exec(
                update(UpdateRecord)
                .where(col(UpdateRecord.node_id) == node_id, waiting)
                .values(
                    state=UpdateState.QUARANTINED,
                    code="node_revoked",
                    reason="the node was revoked before its update was merged",
                    decided_at=now,
                )
            )
            detail: dict[str, JsonValue] = {"node_id": node_id, "quarantined": outcome.rowcount}
            audit.append(session, "node_revoked", actor="operator", detail=detail, now=now)
            return outcome.rowcount

    def list(self) -> list[NodeRow]:
        """Return every site, the oldest first."""
        with self._database.reading() as session:
            return [_row(node) for node in session.exec(select(Node).order_by(col(Node.enrolled_at)))]


def _enrolled_before(session: Session, node_id: str, public_key: PublicKey) -> NodeRow:
    node = session.get_one(Node, node_id)
    if node.public_key != public_key or node.status != NodeStatus.ACTIVE:
        raise UpdateRejectedError("this enrolment code was used already", code="code_used")
    return _row(node)


def _check_invitation(session: Session, invitation: EnrolmentCode, *, node_name: str, now: datetime) -> None:
    if invitation.expires_at < now:
        raise UpdateRejectedError(
            f"this enrolment code expired at {invitation.expires_at:%Y-%m-%d %H:%M} UTC; ask for a new one",
            code="code_expired",
        )
    if invitation.node_name != node_name:
        raise UpdateRejectedError(
            f"this enrolment code was given out for node {invitation.node_name!r}, not {node_name!r}",
            code="node_name_mismatch",
        )
    if _active_named(session, node_name) is not None:
        raise UpdateRejectedError(f"node {node_name!r} is enrolled already", code="node_name_taken")


def _admit(
    session: Session, invitation: EnrolmentCode, *, public_key: PublicKey, node_id: str, now: datetime
) -> Node:
    node = Node(
        id=node_id,
        name=invitation.node_name,
        key_id=signing.key_id(public_key),
        public_key=public_key,
        status=NodeStatus.ACTIVE,
        enrolled_at=now,
    )
    session.add(node)
    session.flush()
    invitation.node_id = node.id
    session.add(invitation)
    detail = {"node_id": node.id, "node_name": node.name, "key": signing.fingerprint(public_key)}
    audit.append(session, "node_enrolled", actor=node.id, detail=detail, now=now)
    return node


def _active_named(session: Session, name: str) -> Node | None:
    return session.exec(select(Node).where(Node.name == name, Node.status == NodeStatus.ACTIVE)).one_or_none()


def _digest(code: str) -> str:
    # A code has 120 random bits, so a plain digest cannot be searched.
    return hashlib.sha256(code.encode()).hexdigest()


def _row(node: Node) -> NodeRow:
    return NodeRow(
        id=node.id,
        name=node.name,
        public_key=PublicKey(node.public_key),
        status=NodeStatus(node.status),
        enrolled_at=node.enrolled_at,
        last_seen_at=node.last_seen_at,
        app=node.app,
    )
