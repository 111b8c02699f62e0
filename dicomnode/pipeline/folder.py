"""Segment the series of a folder without a PACS: files in, files out."""

import hashlib
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from dicomnode import durable
from dicomnode.domain import ResultForm
from dicomnode.errors import InputError, UnreadableInstanceError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import UNREADABLE
from dicomnode.imaging.pictures import preview
from dicomnode.imaging.results.findings import Run
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.pipeline import forms
from dicomnode.pipeline.forms import EncodedObject
from dicomnode.pipeline.routing import Choice, best_of
from dicomnode.pipeline.segment import AS_PLANNED, Inference, route, segment
from dicomnode.pipeline.tools import Stopwatch
from dicomnode.settings import RouteSettings
from dicomnode.spool import read_part_10

_NO_DICOM = (
    *UNREADABLE,
    ArithmeticError,
    EOFError,
    InvalidDicomError,
    RecursionError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOutcome:
    """What became of one series of the folder."""

    series_instance_uid: str
    objects: tuple[tuple[str, str], ...]  # (form, path) of each object; none: not segmented, see reason
    picture_path: str | None
    reason: str
    voxels: tuple[tuple[str, int], ...]
    millilitres: tuple[tuple[str, float], ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderWork:
    """How the series of a folder are to be segmented."""

    routes: Sequence[RouteSettings]
    model_named: Callable[[str], LoadedModel]
    results: Collection[ResultForm]
    now: datetime
    how: Inference = AS_PLANNED


def segment_folder(folder: Path, out: Path, *, work: FolderWork) -> list[FolderOutcome]:
    """Segment each series found under a folder; files that are no DICOM images are passed over.

    Where a route takes only the best series of a study, that is the best of those in the folder, or the next
    best if that one cannot be segmented.

    Raises
    ------
    UnreadableInstanceError
        No DICOM image is there at all.
    SpoolFullError, ResourceError
        The folder for the results has no room, or cannot be written.
    """
    found = read_series(folder)
    outcomes: dict[str, FolderOutcome] = {}
    choices: dict[str, Choice] = {}
    for uid, datasets in found.items():
        try:
            choices[uid] = _route(uid, datasets, work)
        except InputError as error:
            outcomes[uid] = _not_segmented(uid, str(error))
    with durable.translated(out):
        out.mkdir(parents=True, exist_ok=True)
        for rivals in _rivals(choices, found):
            outcomes |= {one.series_instance_uid: one for one in _segment_best(rivals, found, out, work)}
    return [outcomes[uid] for uid in found]


def read_series(folder: Path) -> dict[str, list[Dataset]]:
    """Read the images under a folder, by Series Instance UID; of copies of one image the last counts."""
    found: dict[str, dict[str, Dataset]] = defaultdict(dict)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = read_part_10(path)
            is_image = "SeriesInstanceUID" in ds and "Rows" in ds and "SegmentSequence" not in ds
        except _NO_DICOM:
            continue
        if is_image:
            found[attributes.text(ds, "SeriesInstanceUID")][attributes.text(ds, "SOPInstanceUID")] = ds
    if not found:
        raise UnreadableInstanceError(f"{folder}: no DICOM image in this folder or below it")
    return {uid: list(images.values()) for uid, images in found.items()}


def _route(uid: str, datasets: Sequence[Dataset], work: FolderWork) -> Choice:
    if not UID(uid).is_valid:  # it becomes the name of files
        raise UnreadableInstanceError("its Series Instance UID is malformed: digits and dots were expected")
    return route(datasets, work.routes, sender="")


def _rivals(
    choices: Mapping[str, Choice], found: Mapping[str, Sequence[Dataset]]
) -> Iterator[dict[str, Choice]]:
    """Gather the series of a study of which a route takes the best; each other series stands alone."""
    groups: dict[tuple[str, str], dict[str, Choice]] = defaultdict(dict)
    for uid, choice in choices.items():
        is_rival = choice.route.per_study == "best"
        key = attributes.text(found[uid][0], "StudyInstanceUID") if is_rival else uid
        groups[choice.route.name, key][uid] = choice
    yield from groups.values()


def _segment_best(
    rivals: Mapping[str, Choice], found: Mapping[str, Sequence[Dataset]], out: Path, work: FolderWork
) -> Iterator[FolderOutcome]:
    left = dict(rivals)
    while left:
        best, reasons = best_of(left)
        outcome = _segment_one(best, left.pop(best), _revision(found[best]), out, work)
        yield outcome
        if outcome.picture_path is not None:
            break
    for uid, choice in left.items():
        words = f"route {choice.route.name!r} takes the best series of a study, and {best} is better"
        yield _not_segmented(uid, f"{words}: {reasons[uid]}")


def _segment_one(uid: str, choice: Choice, revision: str, out: Path, work: FolderWork) -> FolderOutcome:
    watch = Stopwatch()
    try:
        made = segment(choice, model_named=work.model_named, watch=watch, how=work.how)
    except InputError as error:
        return _not_segmented(uid, str(error))
    found = made.findings
    written = forms.write(
        found,
        run=Run(created_at=work.now, revision=revision),
        wanted={"here": work.results},
        keep=_Folder(path=out, series_instance_uid=uid).keep,
    )
    watch.lap("write results")
    picture_path = out / f"{uid}.png"
    preview.findings_montage(found, title=found.card.version).save(picture_path)
    reasons = [] if found.found else ["the model marked no voxel, so there is no segmentation to write"]
    return FolderOutcome(
        series_instance_uid=uid,
        objects=tuple(one for one in written.objects if one is not None),
        picture_path=str(picture_path),
        reason="; ".join([*reasons, *(one.in_words for one in written.unwritten)]),
        voxels=tuple((one.segment.label, one.voxels) for one in found.measures),
        millilitres=tuple((one.segment.label, one.millilitres) for one in found.measures),
        seconds=round(sum(seconds for _, seconds in watch.laps), 2),
    )


def _revision(datasets: Sequence[Dataset]) -> str:
    """Name the set of images, so that the same folder gives the same objects."""
    uids = sorted(attributes.text(ds, "SOPInstanceUID") for ds in datasets)
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """Where the objects of one series are written, numbered where there are several of one form."""

    path: Path
    series_instance_uid: str
    numbers: Counter[ResultForm] = field(default_factory=Counter)

    def keep(self, one: EncodedObject) -> tuple[str, str] | None:
        """Write an object that was asked for; gives its form and path."""
        if not one.destinations:
            return None
        self.numbers[one.form] += 1
        number = self.numbers[one.form]
        part = f"-{number}" if number > 1 else ""
        path = self.path / f"{self.series_instance_uid}.{one.form}{part}.dcm"
        with durable.translated(path):
            one.ds.save_as(path, enforce_file_format=True)
        return str(one.form), str(path)


def _not_segmented(uid: str, reason: str) -> FolderOutcome:
    return FolderOutcome(
        series_instance_uid=uid,
        objects=(),
        picture_path=None,
        reason=reason,
        voxels=(),
        millilitres=(),
        seconds=0.0,
    )
