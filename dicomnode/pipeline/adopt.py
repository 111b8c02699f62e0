"""Take up what the federation learned together: fetch a release, check it, put it before this site's gate."""

from hashlib import sha256

from dicomnode import durable, weights
from dicomnode.domain import Job, JobKind, ModelOrigin, Sha256
from dicomnode.errors import InputError, UpdateRejectedError
from dicomnode.federation import manifest
from dicomnode.federation.manifest import BaseRelease, ReleaseManifest
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.ml.model import package
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import architecture_sha256
from dicomnode.pipeline import judging, learn
from dicomnode.pipeline.tools import Queued, Tools
from dicomnode.store.records import Judged, KnownRelease, ModelRecord, ReleaseState


def enqueue_adoption(model: str, tools: Tools) -> Queued:
    """Ask for the newest release, and queue its adoption unless its weights are in use already."""
    apart = tools.reason_apart()
    if apart is not None:
        return Queued(in_words=apart)
    seen = tools.store.federation.latest_release(model)
    known = BaseRelease(version=seen.version, sha256=seen.blob_sha256) if seen else None
    with tools.connect() as client:
        release = client.latest_release(model, known=known)
    if release is None:
        return Queued(in_words="no newer release")
    found = release.manifest
    tools.store.federation.add_release(
        KnownRelease(
            family=model,
            version=found.version,
            blob_sha256=Sha256(found.blob.sha256),
            manifest_json=release.manifest_json.decode(),
            seen_at=tools.now(),
        )
    )
    if _is_inside(found, tools.current_record(model), tools):
        return _note_in_use(found, tools)
    digest = sha256(release.manifest_json).hexdigest()
    tools.enqueue(JobKind.ADOPT_RELEASE, model, digest)
    return Queued(in_words=f"release {found.version}", digest=digest)


def adopt_release(job: Job, tools: Tools) -> None:
    """Fetch the newest release that was seen, check it, put it before this site's gate, and take it up."""
    known = tools.store.federation.latest_release(job.subject)
    if known is None:
        raise InputError(f"no release of {job.subject!r} is known")
    found = manifest.decode(known.manifest_json.encode(), ReleaseManifest)
    current = tools.current_package(job.subject)
    if current.card.weights_sha256 == found.blob.sha256:  # an earlier job, or a person, has put it into use
        tools.store.jobs.finish(job, now=tools.now(), reason=_note_in_use(found, tools).in_words)
        return
    candidate = _accept(found, current, tools)
    report = judging.judge(candidate, current, tools)
    judged = Judged(
        record=_release_record(candidate, current, report, found.version, tools),
        verdict=report.verdict,
        reason=report.reason,
        in_words=f"release {found.version} as {learn.in_words(candidate.card.version, report)}",
    )
    tools.store.models.conclude(job, judged, now=tools.now())


def _is_inside(found: ReleaseManifest, record: ModelRecord, tools: Tools) -> bool:
    """Answer whether a version has the weights of a release, or was made from them.

    A site that has learned more since must not fall back to where it began, unless the federation goes back.
    """
    step: ModelRecord | None = record
    while step is not None and step.weights_sha256 != found.blob.sha256:
        is_far = found.rollback_to is not None or step.parent is None
        step = None if is_far else tools.store.models.get(step.parent or "")
    return step is not None


def _note_in_use(found: ReleaseManifest, tools: Tools) -> Queued:
    """A release whose weights are in use already needs no fetching; it is noted once."""
    known = tools.store.federation.latest_release(found.family)
    if known is None or known.state is not ReleaseState.ADOPTED:
        tools.store.federation.set_release_state(
            found.family,
            found.version,
            ReleaseState.ADOPTED,
            now=tools.now(),
            model_version=package.version_of(found.family, Sha256(found.blob.sha256)),
        )
    return Queued(in_words=f"release {found.version} is in use, or what was learned here since")


def _accept(found: ReleaseManifest, current: ModelPackage, tools: Tools) -> ModelPackage:
    """Fetch a release; one that is not what it should be is refused, with the reason kept beside it."""
    try:
        if found.arch_id != architecture_sha256(current.plan):
            raise UpdateRejectedError(
                f"release {found.version} of {found.family!r} is for another network, voxel spacing or "
                f"normalisation than {current.card.version}; ask the coordinator for the model package of it",
                code="wrong_architecture",
            )
        return _fetch(found, current, tools)
    except InputError as error:
        tools.store.federation.set_release_state(
            found.family, found.version, ReleaseState.REFUSED, now=tools.now(), reason=str(error)
        )
        raise


def _fetch(found: ReleaseManifest, current: ModelPackage, tools: Tools) -> ModelPackage:
    """Bring the weights of a release onto the shelf: right digest, right schema, nothing else."""
    path = tools.exchange / f"{found.blob.sha256}.safetensors"
    with tools.connect() as client, durable.translated(path):
        client.fetch_blob(found.blob.sha256, path, size_bytes=found.blob.size)
    schema = weights.schema_of(weights.read(current.weights_path))
    try:
        tensors = weights.read(path, schema=schema)
    finally:
        path.unlink(missing_ok=True)
    made = (
        f"Merged by {found.strategy} from {found.members} updates of sites."
        if found.members
        else "As published."
    )
    card = f"# {found.family}, release {found.version} of {found.aggregator}\n\n{made}\n"
    return tools.shelf.add(current, tensors, card_text=card)


def _release_record(
    candidate: ModelPackage, current: ModelPackage, report: GateReport, release: int, tools: Tools
) -> ModelRecord:
    return ModelRecord(
        version=candidate.card.version,
        name=candidate.card.name,
        origin=ModelOrigin.RELEASE,
        state=learn.STATE_AFTER[report.verdict],
        folder=str(candidate.folder),
        weights_sha256=candidate.card.weights_sha256,
        created_at=tools.now(),
        parent=current.card.version,
        gate_report_json=report.to_json(),
        release_version=release,
    )
