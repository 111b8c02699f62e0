"""Segment the series of a folder without a PACS: files in, files out."""

import hashlib
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from dicomnode import durable
from dicomnode.domain import ResultForm
from dicomnode.errors import InputError, UnreadableInstanceError
from dicomnode.imaging import attributes, preview
from dicomnode.imaging.attributes import UNREADABLE
from dicomnode.imaging.findings import Run
from dicomnode.ml.inference import LoadedModel
from dicomnode.pipeline import forms
from dicomnode.pipeline.forms import EncodedObject
from dicomnode.pipeline.segment import route, segment
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


def segment_folder(folder: Path, out: Path, *, work: FolderWork) -> list[FolderOutcome]:
    """Segment each series found under a folder; files that are no DICOM images are passed over.

    Raises
    ------
    UnreadableInstanceError
        No DICOM image is there at all.
    SpoolFullError, ResourceError
        The folder for the results has no room, or cannot be written.
    """
    found = read_series(folder)
    with durable.translated(out):
        out.mkdir(parents=True, exist_ok=True)
        return [_segment_one(uid, datasets, out, work) for uid, datasets in found.items()]


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


def _segment_one(uid: str, datasets: Sequence[Dataset], out: Path, work: FolderWork) -> FolderOutcome:
    if not UID(uid).is_valid:  # it becomes the name of files
        return _not_segmented(uid, "its Series Instance UID is malformed: digits and dots were expected")
    watch = Stopwatch()
    try:
        made = segment(route(datasets, work.routes, sender=""), model_named=work.model_named, watch=watch)
    except InputError as error:
        return _not_segmented(uid, str(error))
    found = made.findings
    run = Run(created_at=work.now, revision=_revision(datasets))
    encoded = [one for one in forms.encode(found, run=run, wanted={"here": work.results}) if one.destinations]
    watch.lap("write results")
    objects = _write(uid, encoded, out)
    picture_path = out / f"{uid}.png"
    preview.findings_montage(found, title=found.card.version).save(picture_path)
    return FolderOutcome(
        series_instance_uid=uid,
        objects=objects,
        picture_path=str(picture_path),
        reason="" if found.found else "the model marked no voxel, so there is no segmentation to write",
        voxels=tuple((one.segment.label, one.voxels) for one in found.measures),
        millilitres=tuple((one.segment.label, one.millilitres) for one in found.measures),
        seconds=round(sum(seconds for _, seconds in watch.laps), 2),
    )


def _revision(datasets: Sequence[Dataset]) -> str:
    """Name the set of images, so that the same folder gives the same objects."""
    uids = sorted(attributes.text(ds, "SOPInstanceUID") for ds in datasets)
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()


def _write(uid: str, encoded: Sequence[EncodedObject], out: Path) -> tuple[tuple[str, str], ...]:
    """Write each object beside the others, numbered where there are several of one form."""
    written = []
    for form, group in groupby(encoded, key=lambda one: one.form):
        objects = list(group)
        for number, one in enumerate(objects, 1):
            part = f"-{number}" if len(objects) > 1 else ""
            path = out / f"{uid}.{form}{part}.dcm"
            one.ds.save_as(path, enforce_file_format=True)
            written.append((str(form), str(path)))
    return tuple(written)


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
