"""Training cases as the network sees them, prepared once and kept on disk.

A case is a folder: ``image.npy`` (float32) and ``labels.npy`` (uint8) on the grid of the network, read by
memory mapping, ``places.npy`` (voxels to centre patches on), and ``case.json``. A folder is complete, or it
is not there; one that was prepared for another plan or from another image is made anew.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dicomnode import durable
from dicomnode.ml.frame import framing
from dicomnode.ml.model.plan import Plan, Stage
from dicomnode.ml.training.dataset import IGNORED, CaseSource, LabelledCase

MAXIMUM_PLACES = 10_000
"""Voxels of a class that are remembered, as in nnU-Net."""

_PLAN = TypeAdapter(Plan)
_STAGE = TypeAdapter(Stage)
_OF_PLAN = ("orientation", "axis_order", "crop_to_nonzero")
_OF_STAGE = ("spacing_mm", "spacing_tolerance", "normalisation", "image_interpolation")

Counted = Callable[[int, int], None]
"""Called with (cases done, cases)."""


class _CaseFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dicomnode prepared 1"] = "dicomnode prepared 1"
    key: str
    shape: tuple[int, int, int]
    counts: Annotated[dict[int, int], Field(description="places of each class; IGNORED: of all known voxels")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCase:
    """A training case on disk; its arrays are opened when they are needed."""

    name: str
    folder: Path
    shape: tuple[int, int, int]
    counts: tuple[tuple[int, int], ...]  # class index and number of its places, in the order of the file

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes other than background that the case holds."""
        return tuple(index for index, count in self.counts if count and index not in (0, IGNORED))

    @property
    def has_unknown(self) -> bool:
        """Whether the truth of some voxels is unknown."""
        return any(index == IGNORED for index, _ in self.counts)

    def image(self) -> NDArray[np.float32]:
        """Open the image, (S, R, K), read-only."""
        return _opened(self.folder / "image.npy")

    def labels(self) -> NDArray[np.uint8]:
        """Open the label map, (S, R, K), class indices or IGNORED, read-only."""
        return _opened(self.folder / "labels.npy")

    def places(self, index: int) -> NDArray[np.int32]:
        """Open some voxels of a class, (n, 3); of all whose truth is known where the class is IGNORED."""
        start = 0
        for found, count in self.counts:
            if found == index:
                return _opened(self.folder / "places.npy")[start : start + count]
            start += count
        raise KeyError(index)


def prepare(
    sources: Sequence[CaseSource],
    plan: Plan,
    stage: Stage,
    folder: Path,
    *,
    threads: int,
    progress: Counted,
) -> tuple[PreparedCase, ...]:
    """Bring cases into the frame of a stage, those that are not there yet.

    Parameters
    ----------
    folder
        One for each stage of each plan; what is there is used again.
    threads
        Cases that are in memory at once.

    Raises
    ------
    InputError
        A case cannot be used.
    SpoolFullError, ResourceError
        The disk has no room, or cannot be written.
    """
    with durable.translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, PreparedCase] = {}
        for done, case in enumerate(_in_threads(sources, plan, stage, folder, threads=threads), start=1):
            found[case.name] = case
            progress(done, len(sources))
    return tuple(found[source.name] for source in sources)


def prepared_digest(plan: Plan, stage: Stage) -> str:
    """Identify what decides how an image becomes what a network sees."""
    whole, part = _PLAN.dump_python(plan, mode="json"), _STAGE.dump_python(stage, mode="json")
    parts = {key: whole[key] for key in _OF_PLAN} | {key: part[key] for key in _OF_STAGE}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _in_threads(
    sources: Sequence[CaseSource], plan: Plan, stage: Stage, folder: Path, *, threads: int
) -> Iterator[PreparedCase]:
    digest = prepared_digest(plan, stage)
    waiting = iter(sources)
    running: set[Future[PreparedCase]] = set()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        while True:
            while len(running) < threads and (source := next(waiting, None)) is not None:
                running.add(pool.submit(_prepare_one, source, plan, stage, folder / source.name, digest))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _prepare_one(source: CaseSource, plan: Plan, stage: Stage, folder: Path, digest: str) -> PreparedCase:
    key = hashlib.sha256(f"{digest}\n{source.name}\n{source.version}".encode()).hexdigest()
    file = _read_file(folder)
    if file is None or file.key != key:
        file = _write(source.read(), plan, stage, folder, key=key)
    return PreparedCase(name=source.name, folder=folder, shape=file.shape, counts=tuple(file.counts.items()))


def _read_file(folder: Path) -> _CaseFile | None:
    try:
        return _CaseFile.model_validate_json((folder / "case.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(case: LabelledCase, plan: Plan, stage: Stage, folder: Path, *, key: str) -> _CaseFile:
    framed = framing.frame(case.image, plan, stage)
    labels = framing.frame_labels(case.labels, framed)
    counts, places = _places(labels)
    part = folder.with_name(folder.name + durable.PART_SUFFIX)
    for old in (part, folder):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    np.save(part / "image.npy", framed.array)
    np.save(part / "labels.npy", labels)
    np.save(part / "places.npy", places)
    file = _CaseFile(key=key, shape=labels.shape, counts=counts)
    (part / "case.json").write_text(file.model_dump_json(), encoding="utf-8")
    for path in part.iterdir():
        durable.sync_file(path)
    part.rename(folder)
    return file


def _places(labels: NDArray[np.uint8]) -> tuple[dict[int, int], NDArray[np.int32]]:
    """Choose voxels of each class but background, and of all known ones where there are unknown ones."""
    generator = np.random.default_rng(labels.size)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORED + 1))
    counts: dict[int, int] = {}
    chosen = []
    for index in present[present > 0].tolist():
        voxels = np.flatnonzero((labels != IGNORED) if index == IGNORED else (labels == index))
        if len(voxels) > MAXIMUM_PLACES:
            voxels = generator.choice(voxels, MAXIMUM_PLACES, replace=False)
        counts[index] = len(voxels)
        chosen.append(np.stack(np.unravel_index(voxels, labels.shape), axis=1).astype(np.int32))
    return counts, np.concatenate(chosen) if chosen else np.zeros((0, 3), np.int32)


def _opened(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
