"""Write docs/series.md: what the node makes of every image series in a folder of real data.

``make docs-series`` runs it over the folder that DICOMNODE_DATA names. A test compares the page with what
this program would write.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import nibabel as nib
import numpy as np
from highdicom import Volume
from pydicom import Dataset
from pydicom.uid import UID

from dicomnode.errors import InputError
from dicomnode.imaging import attributes
from dicomnode.imaging.facts import facts_of
from dicomnode.imaging.series import check_supported, stack_volume
from dicomnode.imaging.stacks import Stack, read_stacks
from dicomnode.pipeline.folder import read_series

PAGE = Path(__file__).resolve().parent / "series.md"
DATA = Path(os.environ.get("DICOMNODE_DATA", PAGE.parents[2] / "shared" / "data"))
BEGIN, END = "<!-- begin: series -->\n", "<!-- end: series -->\n"
MAXIMUM_MISSING = 3
_UID = re.compile(r"\b[0-9]+(\.[0-9]+){4,}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    folder: str
    what: str
    made: str
    difference: str

    def __str__(self) -> str:
        return f"| `{self.folder}` | {self.what} | {self.made} | {self.difference} |"


def render(text: str, data: Path) -> str:
    """Put the table between the markers of the page's text."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    header = (
        "| folder | images | what the node makes of it | difference to the reference |\n|---|---|---|---|\n"
    )
    return before + BEGIN + header + "\n".join(map(str, _rows(data))) + "\n" + END + after


def _rows(data: Path) -> Iterator[Row]:
    for folder in sorted(path for path in data.rglob("*") if path.is_dir()):
        files = [path for path in folder.iterdir() if path.is_file()]
        if not files:
            continue
        try:
            found = read_series(folder)
        except InputError:
            continue
        name = str(folder.relative_to(data))
        rows = [row for datasets in found.values() for row in _series(name, datasets, folder)]
        for _, alike in groupby(rows, key=lambda row: (row.what, row.made, row.difference)):
            same = list(alike)
            yield same[0] if len(same) == 1 else _several(same)


def _several(rows: Sequence[Row]) -> Row:
    first = rows[0]
    return Row(
        folder=first.folder,
        what=f"{len(rows)} series, each: {first.what}",
        made=first.made,
        difference=first.difference,
    )


def _series(folder: str, datasets: Sequence[Dataset], path: Path) -> Iterator[Row]:
    what = _what(datasets)
    try:
        check_supported(datasets)
        stacks = read_stacks(datasets)
    except InputError as error:
        yield Row(folder=folder, what=what, made=f"refused: {_plain(error)}", difference="")
        return
    for stack in stacks:
        yield _stack(folder, what, stack, path)


def _stack(folder: str, what: str, stack: Stack, path: Path) -> Row:
    try:
        image = stack_volume(stack, maximum_missing=MAXIMUM_MISSING).image
    except InputError as error:
        return Row(folder=folder, what=what, made=f"refused: {_plain(error)}", difference="")
    facts = facts_of(stack)
    spacing = " × ".join(f"{step:.4g}" for step in image.spacing)
    size = " × ".join(str(number) for number in image.spatial_shape)
    parts = [stack.name, f"{facts.plane}, {size} voxels of {spacing} mm", *map(_plain, stack.remarks)]
    made = "; ".join(part for part in parts if part)
    return Row(folder=folder, what=what, made=made, difference=_difference(image, stack, path))


def _what(datasets: Sequence[Dataset]) -> str:
    first = datasets[0]
    kinds = {UID(attributes.text(ds, "SOPClassUID")).name.removesuffix(" Storage") for ds in datasets}
    syntaxes = {UID(str(ds.file_meta.get("TransferSyntaxUID", ""))).name.split(" (")[0] for ds in datasets}
    frames = sum(attributes.integer(ds, "NumberOfFrames") or 1 for ds in datasets)
    count = f"{len(datasets)} files" if frames == len(datasets) else f"{len(datasets)} files, {frames} frames"
    vendor = attributes.text(first, "Manufacturer").split(" ")[0].title()
    return ", ".join(part for part in (vendor, *sorted(kinds), *sorted(syntaxes), count) if part)


def _plain(reason: object) -> str:
    """Shorten UIDs, which say nothing on a page, and keep the table in one piece."""
    return _UID.sub(lambda uid: f"…{uid[0][-4:]}", str(reason)).replace("|", "/")


def _difference(image: Volume, stack: Stack, path: Path) -> str:
    reference = _reference(stack, path)
    if reference is None:
        return "no reference"
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to the RAS of NIfTI
    ours = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(image.array), flip @ image.affine))
    theirs = nib.as_closest_canonical(nib.load(reference))
    values = np.asarray(theirs.dataobj, np.float64)
    if ours.shape != values.shape:
        return f"another shape: {ours.shape}, reference {values.shape}"
    moved = float(np.abs(ours.affine - theirs.affine).max())
    if moved > 0.02:
        return f"moved by {moved:.2f} mm"
    return f"{np.abs(np.asarray(ours.dataobj) - values).max():.6g}"


def _reference(stack: Stack, path: Path) -> Path | None:
    """Find the true volume beside a series: of its folder, or of its one file."""
    beside = path.parent / f"{path.name}_ground_truth.nii.gz"
    if beside.is_file():
        return beside
    names = {Path(str(frame.ds.filename)).stem for frame in stack.frames}
    of_file = path.parent / "Ref" / f"{names.pop()}.nii" if len(names) == 1 else path / "none"
    return of_file if of_file.is_file() else None


def main() -> None:
    """Write the page anew."""
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there; set DICOMNODE_DATA to a folder of real series")
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), DATA), encoding="utf-8")


if __name__ == "__main__":
    main()
