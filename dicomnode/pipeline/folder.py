"""Segment the series of a folder without a PACS: files in, files out."""

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from dicomnode import durable
from dicomnode.errors import InputError, UnreadableInstanceError
from dicomnode.imaging import attributes, preview
from dicomnode.imaging.attributes import UNREADABLE
from dicomnode.ml.inference import LoadedModel
from dicomnode.pipeline.segment import segment
from dicomnode.settings import RouteSettings

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
    seg_path: str | None  # None: not segmented, see reason
    picture_path: str | None
    reason: str
    voxels: tuple[tuple[str, int], ...]
    millilitres: tuple[tuple[str, float], ...]
    seconds: float


def segment_folder(
    folder: Path,
    out: Path,
    *,
    routes: Sequence[RouteSettings],
    model_named: Callable[[str], LoadedModel],
    now: datetime,
) -> list[FolderOutcome]:
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
        return [
            _segment_one(uid, datasets, out, routes=routes, model_named=model_named, now=now)
            for uid, datasets in found.items()
        ]


def read_series(folder: Path) -> dict[str, list[Dataset]]:
    """Read the images under a folder, by Series Instance UID; of copies of one image the last counts."""
    found: dict[str, dict[str, Dataset]] = defaultdict(dict)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = dcmread(path, defer_size=1024)
            is_image = "SeriesInstanceUID" in ds and "Rows" in ds and "SegmentSequence" not in ds
        except _NO_DICOM:
            continue
        if is_image:
            found[attributes.text(ds, "SeriesInstanceUID")][attributes.text(ds, "SOPInstanceUID")] = ds
    if not found:
        raise UnreadableInstanceError(f"{folder}: no DICOM image in this folder or below it")
    return {uid: list(images.values()) for uid, images in found.items()}


def _segment_one(
    uid: str,
    datasets: Sequence[Dataset],
    out: Path,
    *,
    routes: Sequence[RouteSettings],
    model_named: Callable[[str], LoadedModel],
    now: datetime,
) -> FolderOutcome:
    if not UID(uid).is_valid:  # it becomes the name of files
        return _not_segmented(uid, "its Series Instance UID is malformed: digits and dots were expected")
    try:
        made = segment(datasets, routes=routes, model_named=model_named, made_at=now)
    except InputError as error:
        return _not_segmented(uid, str(error))
    if made.seg is None:
        return _not_segmented(uid, "the model found nothing, and an empty SEG is not written")
    seg_path, picture_path = out / f"{uid}.seg.dcm", out / f"{uid}.png"
    made.seg.ds.save_as(seg_path, enforce_file_format=True)
    preview.montage(made.series.image, made.labels, made.card, title=made.card.version).save(picture_path)
    return FolderOutcome(
        series_instance_uid=uid,
        seg_path=str(seg_path),
        picture_path=str(picture_path),
        reason="",
        voxels=made.seg.voxels,
        millilitres=made.seg.millilitres,
        seconds=round(sum(seconds for _, seconds in made.seconds), 2),
    )


def _not_segmented(uid: str, reason: str) -> FolderOutcome:
    return FolderOutcome(
        series_instance_uid=uid,
        seg_path=None,
        picture_path=None,
        reason=reason,
        voxels=(),
        millilitres=(),
        seconds=0.0,
    )
