"""What the demonstration looks up at the site, beside what the commands print."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom import dcmread

from dicomnode.casebook import Casebook
from dicomnode.demo.inputs import InputSeries
from dicomnode.demo.report import SeriesSummary
from dicomnode.demo.stage import MODEL, DemoError
from dicomnode.domain import ModelState, SeriesState, Split
from dicomnode.errors import InputError
from dicomnode.node import write_secret
from dicomnode.pipeline.segment import route
from dicomnode.settings import NodeSettings
from dicomnode.store import CorrectionRecord, KnownRelease, ReleaseState, ResultRecord, Store

_KEYS_TRIED = 10_000
_SETTLED = frozenset({SeriesState.DELIVERED, SeriesState.COMMITTED, SeriesState.SET_ASIDE})


def are_settled(series_uids: Collection[str], store: Store) -> bool:
    """Answer whether every series has its result at the PACS, or will not get one."""
    rows = [store.series.get(uid) for uid in series_uids]
    return all(
        row is not None and (row.state in _SETTLED or (row.state is SeriesState.SEGMENTED and row.reason))
        for row in rows
    )


def are_read(sop_uids: Collection[str], store: Store) -> bool:
    """Answer whether every received segmentation was read."""
    return all(store.corrections.by_sop_uid(uid) is not None for uid in sop_uids)


def choose_split(settings: NodeSettings, series: Sequence[InputSeries]) -> list[str]:
    """Make the site's pseudonymisation key such that few patients still give both sides of the split.

    A hospital draws this key at random and never looks at the outcome; with the two patients of a
    demonstration that would often leave no hold-out at all.

    Returns
    -------
        What is to be said about it.
    """
    taken = [one for one in series if _is_taken(one, settings)]
    for number in range(_KEYS_TRIED):
        secret = sha256(f"demonstration {number}".encode()).digest()
        patients, held_out = _count_patients(settings, secret, taken)
        if patients < 2:
            return ["[yellow]only one patient, so no hold-out: the gate cannot decide and a person has to[/]"]
        if held_out == max(1, round(patients * settings.training.hold_out_fraction)):
            write_secret(settings.keys_dir, secret)
            return [
                "[yellow]the key that splits patients was chosen so that both sides have one, not drawn[/]"
            ]
    raise DemoError(f"none of {_KEYS_TRIED} keys splits the patients of this folder")


def in_use_after_training(
    outcome: Mapping[str, object], store: Store, remarks: list[str], *, approve: Callable[[str], object]
) -> str:
    """The version that the training put into use; where the gate could not decide, a person approves it."""
    version = str(outcome["version"])
    if outcome["state"] == ModelState.INCONCLUSIVE:
        approve(version)
        remarks.append("[yellow]the gate could not decide; promoted by a person, as `models promote` does[/]")
    current = store.models.current(MODEL)
    if current is None or current.version != version:
        raise DemoError(f"the trained version was not put into use: {outcome['in_words']}")
    return version


def adopted_release(store: Store, remarks: list[str], *, approve: Callable[[str], object]) -> KnownRelease:
    """The merged release as it was taken up here."""
    release = store.federation.latest_release(MODEL)
    if release is None or release.version < 2 or release.model_version is None:
        raise DemoError(
            "the aggregator made no new release, or the node did not fetch it: " + "; ".join(remarks)
        )
    if release.state is ReleaseState.INCONCLUSIVE:
        approve(release.model_version)
        remarks.append("[yellow]the gate could not decide; promoted by a person, as `models promote` does[/]")
    current = store.models.current(MODEL)
    if current is None or current.version != release.model_version:
        raise DemoError(f"release {release.version} was not taken up: {release.reason}")
    return release


def summaries(
    series: Sequence[InputSeries],
    results: Mapping[str, ResultRecord],
    corrections: Mapping[str, CorrectionRecord],
) -> Iterator[SeriesSummary]:
    """One line of the summary for each label of each series."""
    for one in series:
        result = results.get(one.series_instance_uid)
        correction = corrections.get(one.series_instance_uid)
        if result is None or correction is None:
            continue
        scores = {score.label: score for score in correction.scores}
        for (label, voxels), (_, millilitres) in zip(result.voxels, result.millilitres, strict=True):
            score = scores.get(label)
            yield SeriesSummary(
                title=one.title,
                slices=len(one.files),
                label=label,
                voxels=voxels,
                millilitres=millilitres,
                dice_with_reader=score.dice if score else None,
                edited_slices=len(score.edited_slices) if score else 0,
                split=str(correction.split or ""),
            )


def _is_taken(one: InputSeries, settings: NodeSettings) -> bool:
    """Answer whether the node will segment a series; it will say itself why not."""
    try:
        route([dcmread(path) for path in one.files], settings.routes, sender="")
    except InputError:
        return False
    return True


def _count_patients(settings: NodeSettings, secret: bytes, series: Sequence[InputSeries]) -> tuple[int, int]:
    """How many patients there are, and how many of them this key would hold out."""
    with TemporaryDirectory() as folder:
        book = Casebook(Path(folder), secret=secret, hold_out_fraction=settings.training.hold_out_fraction)
        keys = {
            book.patient_key(one.patient_id, one.patient_id_issuer, study_instance_uid=one.study_instance_uid)
            for one in series
        }
        return len(keys), sum(book.split_of(key) is Split.HOLD_OUT for key in keys)
