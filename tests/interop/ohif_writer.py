"""Segmentations by OHIF's real writer, the Cornerstone adapters, in the versions that its releases carry.

DICOMNODE_OHIF_WRITERS names a folder that holds `ohif-VERSION/node_modules` for every version of `VERSIONS`,
with @cornerstonejs/adapters and @cornerstonejs/core of that version, and `esbuild/node_modules`.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword

from dicomnode.imaging.images.series import SeriesVolume

VERSIONS = ("2.2.20", "3.20.0", "4.15.29", "5.6.8", "5.14.0")
"""Of OHIF 3.9, 3.11, 3.12, 3.13, and what follows."""
OLD = frozenset({"2.2.20", "3.20.0", "4.15.29"})
LABEL_MAP, BITMAP_RLE, BITMAP_LE, FRACTIONAL_RLE = "label map", "bitmap RLE", "bitmap LE", "fractional RLE"

_SEG, _LABEL_MAP_SEG = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_LE, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
_SCRIPT = Path(__file__).with_name("ohif_write.mjs")
_ADAPTERS = "./node_modules/@cornerstonejs/adapters/dist/esm"
_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SliceThickness",
    "Modality",
    "InstanceNumber",
    "SeriesNumber",
    "StudyDate",
    "StudyTime",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """What a reader saves: labels on the slices of a series, in one layer, or several where they overlap.

    `is_descending`: the viewer holds the images from the end of the normal to its beginning.
    """

    series: SeriesVolume
    layers: Sequence[Labels]  # each (slice, row, column)
    segments: Sequence[str]
    form: str
    is_descending: bool


def forms_of(version: str) -> tuple[str, ...]:
    """Which forms a version can write."""
    return (BITMAP_LE, FRACTIONAL_RLE) if version in OLD else (LABEL_MAP, BITMAP_RLE, BITMAP_LE)


def write(version: str, saved: Sequence[Saved]) -> list[Dataset]:
    """Let one version of the adapters save everything in one run of Node; skips where it is absent."""
    script = _bundled(version)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [_job(one, Path(folder), number) for number, one in enumerate(saved)]
        listed = Path(folder, "jobs.json")
        listed.write_text(json.dumps(jobs))
        _run(["node", str(script), str(listed)], Path(folder))
        return [dcmread(job["out"]) for job in jobs]


def need_version(version: str) -> Path:
    """Find the packages of a version, or skip the test."""
    folder = Path(os.environ.get("DICOMNODE_OHIF_WRITERS", ""), f"ohif-{version}")
    if "DICOMNODE_OHIF_WRITERS" not in os.environ or not (folder / "node_modules").is_dir():
        pytest.skip(f"no Cornerstone adapters {version}; set DICOMNODE_OHIF_WRITERS")
    return folder


@cache
def _bundled(version: str) -> Path:
    """Bundle the script with the adapters, whose older versions Node cannot import as they are."""
    packages = need_version(version)
    folder = Path(tempfile.mkdtemp(prefix=f"ohif-{version}-"))
    (folder / "node_modules").symlink_to(packages.resolve() / "node_modules")
    (folder / "write.mjs").write_text(_SCRIPT.read_text(encoding="utf-8"))
    (folder / "adapters.mjs").write_text(_imports(folder))
    esbuild = packages.parent / "esbuild" / "node_modules" / ".bin" / "esbuild"
    options = ["--bundle", "--platform=node", "--format=cjs", "--log-level=error", "--outfile=write.cjs"]
    _run([str(esbuild), "write.mjs", *options], folder)
    return folder / "write.cjs"


def _imports(folder: Path) -> str:
    lines = [
        f"export {{ generateSegmentation }} from "
        f"'{_ADAPTERS}/adapters/Cornerstone3D/Segmentation/generateSegmentation.js';",
        "export { metaData } from '@cornerstonejs/core';",
        "export { default as dcmjs } from 'dcmjs';",
    ]
    provider = f"{_ADAPTERS}/utilities/referencedMetadataProvider.js"  # since 4.x it feeds the writer
    if (folder / provider).is_file():
        lines.append(f"import '{provider}';")
    return "\n".join(lines)


def _job(saved: Saved, folder: Path, number: int) -> dict[str, object]:
    layers = []
    for index, layer in enumerate(saved.layers):
        path = folder / f"{number}_{index}.raw"
        layer.astype(np.uint8).tofile(path)
        layers.append(str(path))
    return {
        "images": [image_attributes(ds) for ds in saved.series.sources],
        "layers": layers,
        "segments": list(saved.segments),
        "reverse": saved.is_descending,
        "options": _options(saved),
        "out": str(folder / f"{number}.dcm"),
    }


def _options(saved: Saved) -> dict[str, object]:
    # OHIF saves a label map with several layers as a bitmap, because a label map cannot hold an overlap
    is_label_map = saved.form == LABEL_MAP and len(saved.layers) == 1
    syntax = _LE if saved.form == BITMAP_LE else _RLE
    return {
        "SeriesDescription": "Corrected",
        "SeriesNumber": 3101,
        "sopClassUID": _LABEL_MAP_SEG if is_label_map else _SEG,
        "transferSyntaxUID": syntax,
        "transferSyntaxUid": syntax,
        "rleEncode": saved.form == FRACTIONAL_RLE,  # read by versions up to 4.x
    }


def image_attributes(ds: Dataset) -> dict[str, object]:
    """Give the attributes of a source image as a viewer gets them from DICOMweb."""
    plain = json.loads(ds.to_json(bulk_data_element_handler=lambda _: None, suppress_invalid_tags=True))
    found: dict[str, object] = {}
    for keyword in _KEYWORDS:
        values = plain.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value", [""])
        found[keyword] = values[0] if len(values) == 1 else values
    return {**found, "PatientID": "CASE", "AccessionNumber": "", "SeriesDescription": ""}


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-1500:]
