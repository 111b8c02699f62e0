"""Write docs/series.md: what the node makes of every image series in a folder of real data.

``make docs-series`` runs it over the folder that DICOMNODE_DATA names. A test compares the page with what
this program would write.
"""

import math
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
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from dicomnode.errors import InputError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.facts import facts_of
from dicomnode.imaging.images.frames import read_frames
from dicomnode.imaging.images.pixels import decode_planes
from dicomnode.imaging.images.series import stack_volume, supported_images
from dicomnode.imaging.images.stacks import Stack, read_stacks
from dicomnode.pipeline.folder import read_series

PAGE = Path(__file__).resolve().parent / "series.md"
DATA = Path(os.environ.get("DICOMNODE_DATA", PAGE.parents[2] / "shared" / "data"))
BEGIN, END = "<!-- begin: series -->\n", "<!-- end: series -->\n"
MAXIMUM_MISSING = 3
_HEADER = "| folder | images | what the node makes of it | difference to the reference |\n|---|---|---|---|"
_MOSAIC_HEADER = "| mosaic, pixels only | transfer syntax | difference to the reference |\n|---|---|---|"
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
    table = "\n".join([_HEADER, *map(str, _rows(data)), "", _MOSAIC_HEADER, *_mosaics(data)])
    return f"{before}{BEGIN}{table}\n{END}{after}"


def _rows(data: Path) -> Iterator[Row]:
    for folder in sorted(path for path in data.rglob("*") if path.is_dir()):
        files = [path for path in folder.iterdir() if path.is_file()]
        if not files:
            continue
        try:
            found = read_series(folder)
        except InputError:
            continue
        here = [
            datasets
            for datasets in found.values()
            if all(Path(str(ds.filename)).parent == folder for ds in datasets)
        ]
        name = str(folder.relative_to(data))
        rows = sorted((row for datasets in here for row in _series(name, datasets, folder)), key=str)
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
        stacks = read_stacks(supported_images(datasets))
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
    return Row(folder=folder, what=what, made=made, difference=_difference(image, path))


def _what(datasets: Sequence[Dataset]) -> str:
    first = datasets[0]
    kinds = {UID(attributes.text(ds, "SOPClassUID")).name.removesuffix(" Storage") for ds in datasets}
    syntaxes = {UID(str(ds.file_meta.get("TransferSyntaxUID", ""))).name.split(" (")[0] for ds in datasets}
    frames = sum(attributes.integer(ds, "NumberOfFrames") or 1 for ds in datasets)
    count = f"{len(datasets)} file{'s' * (len(datasets) > 1)}"
    count += f", {frames} frames" if frames > len(datasets) else ""
    vendor = attributes.text(first, "Manufacturer").split(" ")[0].title()
    return ", ".join(part for part in (vendor, *sorted(kinds), *sorted(syntaxes), count) if part)


def _plain(reason: object) -> str:
    """Shorten UIDs, which say nothing on a page, and keep the table in one piece."""
    return _UID.sub(lambda uid: f"…{uid[0][-4:]}", str(reason)).replace("|", "/")


def _difference(image: Volume, path: Path) -> str:
    reference = _reference(path)
    if reference is None:
        return "no reference"
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to the RAS of NIfTI
    ours = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(image.array), flip @ image.affine))
    theirs = nib.as_closest_canonical(nib.load(reference))
    values = np.asarray(theirs.dataobj, np.float64)
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    if ours.shape != values.shape:
        return f"another shape: {ours.shape}, reference {values.shape}"
    moved = float(np.abs(ours.affine - theirs.affine).max())
    if moved > 0.02:
        return f"moved by {moved:.2f} mm"
    return f"{np.abs(np.asarray(ours.dataobj) - values).max():.6g}"


def _reference(path: Path) -> Path | None:
    """Find the true volume beside the folder of a series."""
    beside = path.parent / f"{path.name}_ground_truth.nii.gz"
    return beside if beside.is_file() else None


def _mosaics(data: Path) -> Iterator[str]:
    """Compare the decoded pixels of mosaics, which are refused as series, tile by tile with their volumes."""
    for path in sorted((data / "transfer_syntaxes").rglob("In/*.dcm")):
        (frame,) = read_frames([dcmread(path)])
        truth = np.asarray(nib.load(path.parents[1] / "Ref" / f"{path.stem}.nii").dataobj)
        columns, rows, slices = truth.shape
        across = math.ceil(math.sqrt(slices))
        (plane,) = decode_planes([frame], shape=(1, *frame.size))
        tiles = plane.reshape(across, rows, across, columns).swapaxes(1, 2).reshape(-1, rows, columns)
        difference = np.abs(tiles[:slices] - truth.transpose(2, 1, 0)[:, ::-1]).max()
        syntax = UID(str(frame.ds.file_meta.TransferSyntaxUID)).name
        yield f"| `{path.relative_to(data)}` | {syntax} | {difference:.6g} |"


def main() -> None:
    """Write the page anew."""
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there; set DICOMNODE_DATA to a folder of real series")
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), DATA), encoding="utf-8")


if __name__ == "__main__":
    main()
