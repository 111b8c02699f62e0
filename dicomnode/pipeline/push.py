"""Offer to the federation what was learned here: an exact difference to a release, never an image."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dicomnode import durable, weights
from dicomnode.domain import Job, JobKind, ModelOrigin, ModelVersion, Segment, Sha256
from dicomnode.errors import InputError, UpdateRejectedError
from dicomnode.federation import manifest
from dicomnode.federation.client import AggregatorClient, Offer
from dicomnode.federation.manifest import (
    BlobRef,
    ClassCases,
    ReleaseManifest,
    UpdateManifest,
    UpdateState,
)
from dicomnode.federation.messages import UpdateStatus
from dicomnode.pipeline.tools import Queued, Tools
from dicomnode.store.records import KnownRelease, ModelRecord, OutboxState, OutboxUpdate

_STATES = {
    UpdateState.ANNOUNCED: OutboxState.SENT,
    UpdateState.ACCEPTED: OutboxState.SENT,
    UpdateState.QUARANTINED: OutboxState.QUARANTINED,
    UpdateState.REJECTED: OutboxState.REJECTED,
    UpdateState.MERGED: OutboxState.MERGED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What this site learned since the release that it started from."""

    record: ModelRecord  # the version in use
    base: KnownRelease
    base_version: ModelVersion  # the base as it stands on the shelf
    case_ids: tuple[str, ...]
    patients: int
    steps: int
    epochs: int


def enqueue_push(model: str, tools: Tools) -> Queued:
    """Queue the sending of what was learned here, if the site's policy allows it."""
    apart = tools.reason_apart()
    if apart is not None:
        return Queued(in_words=apart)
    found = find_contribution(model, tools)
    if isinstance(found, str):
        return Queued(in_words=found)
    version, release = found.record.version, found.base.version
    digest = sha256(f"{version}\n{release}".encode()).hexdigest()
    tools.enqueue(JobKind.PUSH_UPDATE, version, digest)
    return Queued(in_words=f"update of {version} on release {release}", digest=digest)


def find_contribution(model: str, tools: Tools) -> Contribution | str:
    """Find what could be offered now, or the reason why nothing is."""
    record = tools.current_record(model)
    if record.origin is not ModelOrigin.TRAINED:
        return "the version in use holds nothing that was learned here"
    contribution = _since_release(record, tools)
    if contribution is None:
        return "the version in use does not descend from a release of the federation"
    policy = tools.federation
    if contribution.patients < policy.minimum_patients:
        return f"{contribution.patients} patients behind it; it may leave with {policy.minimum_patients}"
    if contribution.steps < policy.minimum_steps:
        return f"{contribution.steps} training steps behind it; it may leave with {policy.minimum_steps}"
    if _has_contributed(contribution, tools):
        return (
            f"this site has contributed on release {contribution.base.version} already; it waits for the next"
        )
    return contribution


def push_update(job: Job, tools: Tools) -> None:
    """Send what a version learned since its release; the same bytes, however often it takes."""
    update = tools.store.federation.update_of(job.subject)
    with tools.connect() as client:
        if update is None or not (tools.exchange / update.blob_path).exists():
            update = _prepare_update(job, client, tools)
        statement = manifest.decode(update.manifest_json.encode(), UpdateManifest)
        try:
            status = client.push(tools.exchange / update.blob_path, statement)
        except UpdateRejectedError as error:
            answer = f"{error.code}: {error}"
            tools.store.federation.set_update_state(
                update.update_id, OutboxState.REJECTED, now=tools.now(), answer=answer
            )
            raise
    _note_answer(update, status, tools)
    tools.store.jobs.finish(job, now=tools.now(), reason=f"update {update.update_id} is {status.state}")


def refresh_updates(tools: Tools) -> list[OutboxUpdate]:
    """Ask what became of the updates that were sent, and keep the answers."""
    sent = tools.store.federation.updates(OutboxState.SENT)
    if sent:
        with tools.connect() as client:
            for update in sent:
                _refresh(update, client, tools)
    return tools.store.federation.updates()


def _refresh(update: OutboxUpdate, client: AggregatorClient, tools: Tools) -> None:
    """Ask about one update; one that the aggregator has lost must not stand in the way of the next."""
    try:
        status = client.update_state(update.update_id)
    except UpdateRejectedError as error:
        if error.code != "not_found":
            raise
        tools.store.federation.set_update_state(
            update.update_id, OutboxState.ABANDONED, now=tools.now(), answer=f"{error.code}: {error}"
        )
    else:
        _note_answer(update, status, tools)


def _since_release(record: ModelRecord, tools: Tools) -> Contribution | None:
    """Walk from the version in use back to the release that it descends from."""
    releases = {release.blob_sha256: release for release in tools.store.federation.releases(record.name)}
    case_ids: list[str] = []
    steps = epochs = 0
    step: ModelRecord | None = record
    while step is not None and step.weights_sha256 not in releases:
        case_ids += step.case_ids
        steps, epochs = steps + step.steps, epochs + step.epochs
        step = tools.store.models.get(step.parent) if step.parent else None
    if step is None:
        return None
    infos = tools.casebook.cases(model_name=record.name)
    return Contribution(
        record=record,
        base=releases[step.weights_sha256],
        base_version=step.version,
        case_ids=tuple(dict.fromkeys(case_ids)),
        patients=len({info.patient_key for info in infos if info.case_id in case_ids}),
        steps=steps,
        epochs=epochs,
    )


def _has_contributed(contribution: Contribution, tools: Tools) -> bool:
    """Answer whether another update of this site on the same release is on its way or merged."""
    spent = (OutboxState.PENDING, OutboxState.SENT, OutboxState.MERGED)
    return any(
        update.base_release == contribution.base.version
        and update.model_version != contribution.record.version
        for update in tools.store.federation.updates(*spent)
    )


def _prepare_update(job: Job, client: AggregatorClient, tools: Tools) -> OutboxUpdate:
    """Write the exact difference to the base release as bfloat16, and its manifest, into the outbox."""
    record = tools.store.models.get(job.subject)
    contribution = _since_release(record, tools) if record else None
    if record is None or contribution is None:
        raise InputError(f"version {job.subject} does not descend from a release of the federation")
    blob_path = tools.exchange / f"{record.version}.delta.safetensors"
    blob = _write_delta(contribution, blob_path, tools)
    statement = client.describe(
        Offer(
            base=manifest.decode(contribution.base.manifest_json.encode(), ReleaseManifest),
            blob=blob,
            encoding="bf16",
            n_cases=len(contribution.case_ids),
            n_steps=contribution.steps,
            local_epochs=contribution.epochs,
            classes=_classes(contribution, tools),
        )
    )
    update = OutboxUpdate(
        update_id=statement.update_id,
        model_version=record.version,
        base_release=contribution.base.version,
        blob_path=blob_path.name,
        blob_sha256=Sha256(blob.sha256),
        blob_bytes=blob.size,
        manifest_json=manifest.encode(statement).decode(),
        created_at=tools.now(),
    )
    tools.store.federation.add_update(update)
    return tools.store.federation.update_of(record.version) or update


def _write_delta(contribution: Contribution, path: Path, tools: Tools) -> BlobRef:
    """Write the difference to the base; the same two versions give the same bytes."""
    tuned = weights.read(tools.shelf.package(contribution.record.version).weights_path)
    base = weights.read(tools.shelf.package(contribution.base_version).weights_path)
    with durable.translated(path):
        digest = weights.write(path, weights.to_bf16(weights.delta(tuned, base)))
        return BlobRef(sha256=digest, size=path.stat().st_size)


def _classes(contribution: Contribution, tools: Tools) -> tuple[ClassCases, ...]:
    """Count the cases that speak of each label, by its coded concept."""
    infos = tools.casebook.cases(model_name=contribution.record.name)
    used = [info for info in infos if info.case_id in contribution.case_ids]
    card = tools.shelf.package(contribution.record.version).card
    counts = [
        (segment, sum(segment.label in info.labels_known for info in used)) for segment in card.segments
    ]
    return tuple(ClassCases(code=_class_code(segment), cases=count) for segment, count in counts if count)


def _class_code(segment: Segment) -> str:
    """Name a class across sites: scheme and value of its type, and of the modifier where there is one."""
    modifier = "" if segment.type_modifier is None else f":{segment.type_modifier.value}"
    return f"{segment.type.scheme}:{segment.type.value}{modifier}"


def _note_answer(update: OutboxUpdate, status: UpdateStatus, tools: Tools) -> None:
    answer = f"{status.code}: {status.reason}" if status.code else status.reason
    if status.merged_version is not None:
        answer = f"merged into release {status.merged_version}"
    tools.store.federation.set_update_state(
        update.update_id, _STATES[status.state], now=tools.now(), answer=answer
    )
