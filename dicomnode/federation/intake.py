"""The work behind the HTTP border: judge announced updates, merge accepted ones, publish the release.

Everything that waits stands in the ledger, so a killed process continues where it was: judging and
merging are computed again, and the one transaction that publishes happens once.
"""

import threading
from collections.abc import Callable
from statistics import median
from typing import Final

import structlog

from dicomnode import weights
from dicomnode.errors import DicomNodeError, ResourceError, UpdateRejectedError
from dicomnode.federation import admission, manifest, merging, releases, signing
from dicomnode.federation.ledger.updates import UpdateRow
from dicomnode.federation.ledger.versions import FamilyRow, NewMember, VersionRow
from dicomnode.federation.manifest import UpdateManifest, UpdateState
from dicomnode.federation.merging import Contribution, MergeRule
from dicomnode.federation.releases import NextRelease
from dicomnode.federation.tools import Tools

log = structlog.get_logger()

_MERGE_ATTEMPTS: Final = 10
_PAUSE_S: Final = 5.0


class Intake:
    """The thread that works off what waits; woken by an announcement, and by itself every few seconds."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Begin, with whatever an earlier process left."""
        self._thread.start()

    def wake(self) -> None:
        """Say that something new waits."""
        self._wake.set()

    def stop(self) -> None:
        """End after the update in hand."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            try:
                work_off(self._tools)
            except ResourceError as error:
                log.warning("intake paused", reason=str(error))
            except Exception:
                # Without this the thread would end and the aggregator would accept updates for nobody.
                log.exception("intake failed")
            self._wake.wait(_PAUSE_S)


def work_off(tools: Tools) -> None:
    """Judge and merge everything that waits, in the order of update ids.

    Raises
    ------
    ResourceError
        The disk or the database is short of something; what waits goes on waiting.
    """
    for update in tools.ledger.updates.in_state(UpdateState.ANNOUNCED):
        _guarded(judge, update, tools)
    for update in tools.ledger.updates.in_state(UpdateState.ACCEPTED):
        _guarded(merge, update, tools)


def judge(update: UpdateRow, tools: Tools) -> None:
    """Decide whether an announced update may be merged.

    Raises
    ------
    UpdateRejectedError
        It may not.
    """
    claim = _claim(update, tools)
    family, head = _family_and_head(update.family, tools)
    merging.staleness_factor(head.version - claim.base.version)
    history = tools.ledger.updates.recent_norms(family.name)
    expected = admission.Expectation(
        blob=claim.blob,
        encoding=claim.encoding,
        schema=family.schema,
        maximum_bytes=tools.rules.maximum_blob_bytes,
        norm_bound=admission.norm_bound(
            history,
            head_norm=weights.norm(weights.read(tools.blobs.path_of(head.blob.sha256))),
            factor=tools.rules.maximum_norm_factor,
        ),
    )
    admitted = admission.check(tools.blobs.path_of(claim.blob.sha256).read_bytes(), expected)
    tools.ledger.updates.decide(update.update_id, UpdateState.ACCEPTED, norm=admitted.norm, now=tools.now())
    log.info("update accepted", update=update.update_id, node=update.node_id, norm=admitted.norm)


def merge(update: UpdateRow, tools: Tools) -> None:
    """Merge an accepted update into the newest release and publish the result.

    Another process may publish first; then the merge is computed again from its release.

    Raises
    ------
    UpdateRejectedError
        The update has become too stale, or the merged weights fail a check.
    """
    claim = _claim(update, tools)
    for _ in range(_MERGE_ATTEMPTS):
        family, head = _family_and_head(update.family, tools)
        release = _merged_release(claim, family, head, tools)
        if releases.publish(release, tools, actor="aggregator"):
            log.info("release published", family=family.name, version=head.version + 1, updates=1)
            return
        current = tools.ledger.updates.get(update.update_id)
        if current is None or current.state != UpdateState.ACCEPTED:
            return


def _merged_release(claim: UpdateManifest, family: FamilyRow, head: VersionRow, tools: Tools) -> NextRelease:
    head_weights = weights.read(tools.blobs.path_of(head.blob.sha256), schema=family.schema)
    delta = weights.read(tools.blobs.path_of(claim.blob.sha256))
    contribution = Contribution(
        update_id=claim.update_id,
        delta=delta,
        norm=weights.norm(delta),
        n_cases=claim.n_cases,
        staleness=head.version - claim.base.version,
    )
    merged = merging.merge(tools.rules.strategy, head_weights, [contribution], _rule(family.name, tools))
    admission.check_merged(merged.tensors)
    members = tuple(
        NewMember(
            update_id=share.update_id,
            weight=share.weight,
            staleness=share.staleness,
            clip_factor=share.clip_factor,
        )
        for share in merged.shares
    )
    blob = tools.blobs.write_weights(merged.tensors)
    return NextRelease(family=family, parent=head, blob=blob, strategy=tools.rules.strategy, members=members)


def _rule(family: str, tools: Tools) -> MergeRule:
    history = tools.ledger.updates.recent_norms(family)
    enough = tools.rules.clip_factor > 0 and len(history) >= admission.MINIMUM_HISTORY
    return MergeRule(
        eta=tools.rules.eta, clip_norm=tools.rules.clip_factor * median(history) if enough else None
    )


def _claim(update: UpdateRow, tools: Tools) -> UpdateManifest:
    node = tools.ledger.nodes.get(update.node_id)
    if node is None:
        raise UpdateRejectedError(f"node {update.node_id} is not in the ledger", code="unknown_node")
    payload = signing.unseal(update.envelope, payload_type=signing.UPDATE_TYPE, public_key=node.public_key)
    return manifest.decode(payload, UpdateManifest)


def _family_and_head(name: str, tools: Tools) -> tuple[FamilyRow, VersionRow]:
    family, head = tools.ledger.versions.family(name), tools.ledger.versions.head(name)
    if family is None or head is None:
        raise UpdateRejectedError(f"there is no release of {name!r}", code="unknown_family")
    return family, head


def _guarded(step: Callable[[UpdateRow, Tools], None], update: UpdateRow, tools: Tools) -> None:
    try:
        step(update, tools)
    except ResourceError:
        raise
    except UpdateRejectedError as error:
        _refuse(update, tools, code=error.code, reason=str(error))
    except DicomNodeError as error:
        _refuse(update, tools, code="internal_error", reason=str(error))
    except Exception:
        # A bug must not let one update block all others for ever; the traceback is in the log.
        log.exception("update could not be processed", update=update.update_id)
        _refuse(update, tools, code="internal_error", reason="the aggregator failed on this update")


def _refuse(update: UpdateRow, tools: Tools, *, code: str, reason: str) -> None:
    kept = code in admission.QUARANTINE_CODES or code == "internal_error"
    state = UpdateState.QUARANTINED if kept else UpdateState.REJECTED
    tools.ledger.updates.decide(update.update_id, state, code=code, reason=reason, now=tools.now())
    log.info("update refused", update=update.update_id, node=update.node_id, state=state, code=code)
