"""OHIF's own code (Cornerstone adapters in Node) reads our objects, and we read its, voxel by voxel.

DICOMNODE_OHIF_ADAPTERS names folders with the npm packages installed, one per version, separated
by ":"; the scripts that drive them are `write.mjs` and `read.mjs` in DICOMNODE_OHIF_WRITER (default: beside
the data).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword

from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.findings import measure
from tests.imaging_builders import make_card
from tests.interop.seg_cases import FOLDERS, HIPPOCAMPUS_STUDIES, blobs, blobs_in, series_named
from tests.seg_builders import RUN, encoded_forms

LABELS = ("A first", "B second", "C third")
CARD = make_card(LABELS)
MIRRORED = (*HIPPOCAMPUS_STUDIES, "pet", "made")  # also loaded from the other end
ADAPTERS = [Path(folder) for folder in os.environ.get("DICOMNODE_OHIF_ADAPTERS", "").split(":") if folder]

if not ADAPTERS:
    pytest.skip(
        "no Cornerstone adapters: set DICOMNODE_OHIF_ADAPTERS to folders with node_modules",
        allow_module_level=True,
    )


@pytest.fixture
def writer(data_dir):
    folder = Path(os.environ.get("DICOMNODE_OHIF_WRITER", data_dir.parent / "tools" / "ohif-writer"))
    if not (folder / "write.mjs").is_file():
        pytest.skip(f"no write.mjs in {folder}; set DICOMNODE_OHIF_WRITER")
    return folder


def attributes(ds):
    plain = json.loads(ds.to_json(bulk_data_element_handler=lambda _: None, suppress_invalid_tags=True))
    keywords = (
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
        "Modality",
        "InstanceNumber",
        "StudyDate",
        "StudyTime",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "SamplesPerPixel",
        "PhotometricInterpretation",
    )
    found = {
        "SliceThickness": 1,
        "SeriesNumber": 1,
        "PatientID": "x",
        "AccessionNumber": "",
        "SeriesDescription": "",
    }
    for keyword in keywords:
        values = plain.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value", [""])
        found[keyword] = values[0] if len(values) == 1 else values
    return found


def run_node(script, *arguments, adapters, writer, folder, **environment):
    shutil.copy(writer / script, folder / script)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(adapters / "node_modules")
    done = subprocess.run(
        ["node", script, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


def written_by_ohif(series, labels, *, adapters, writer, folder, is_reversed):
    meta = [attributes(ds) for ds in series.sources]
    (folder / "meta.json").write_text(json.dumps(meta))
    labels.tofile(folder / "labels.raw")
    order = {"REVERSE": "1"} if is_reversed else {}
    arguments = ("meta.json", "labels.raw", "out_", *LABELS)
    run_node("write.mjs", *arguments, adapters=adapters, writer=writer, folder=folder, **order)


@pytest.mark.parametrize("adapters", ADAPTERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["Study2", "Study3"])
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("has_middle_label", [True, False])
def test_label_maps_and_bitmaps_of_ohif_are_read_exactly(
    name, is_reversed, has_middle_label, adapters, writer, data_dir, need_program, tmp_path
):
    need_program("node")
    series = series_named(name, data_dir)
    labels = np.zeros(series.image.shape, np.uint8)
    labels[5:20, 10:25, 8:20], labels[15:22, 20:30, 10:25], labels[30, 0, 0] = 1, 3, 1
    if has_middle_label:
        labels[3, 2:4, 1] = 2

    written_by_ohif(
        series, labels, adapters=adapters, writer=writer, folder=tmp_path, is_reversed=is_reversed
    )

    for form in ("labelmap", "bitmap_rle", "bitmap_le"):
        decoded = seg_read.decode(dcmread(tmp_path / f"out_{form}.dcm"), stack=series.stack, card=CARD)
        assert decoded.unmapped_labels == ()
        for segment in CARD.segments:
            mask = decoded.masks.get(segment.label, np.zeros(labels.shape, bool))
            np.testing.assert_array_equal(
                mask, labels == segment.segment_number, err_msg=f"{form} {segment.label}"
            )


@pytest.mark.parametrize("adapters", ADAPTERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize(
    ("name", "step"),
    [*((name, 1) for name in (*FOLDERS, "spleen", "made")), *((name, -1) for name in MIRRORED)],
)
@pytest.mark.parametrize("form", ["binary", "label map"])
def test_ohif_finds_our_labels_on_every_slice(
    name, form, step, adapters, writer, data_dir, need_program, tmp_path
):
    need_program("node")
    series = series_named(name, data_dir)
    card = make_card()
    ds = encoded_forms(blobs_in(series, card))[form]
    ds.save_as(tmp_path / "ours.dcm", enforce_file_format=True)
    (tmp_path / "meta.json").write_text(json.dumps([attributes(ds) for ds in series.sources[::step]]))

    printed = run_node("read.mjs", "meta.json", "ours.dcm", adapters=adapters, writer=writer, folder=tmp_path)

    wanted = [
        {str(v): int((plane == v).sum()) for v in (1, 2) if (plane == v).any()}
        for plane in blobs(series.image).array
    ]
    assert counts_in(printed) == wanted[::step]
    # items are taken by their place in the sequence by some versions, so that names and colours depend on it
    assert "|".join(f"{s.segment_number}:{s.label}" for s in card.segments) in printed


@pytest.mark.parametrize("adapters", ADAPTERS, ids=lambda folder: folder.name)
def test_ohif_finds_nothing_in_an_empty_label_map(adapters, writer, data_dir, need_program, tmp_path):
    need_program("node")
    series = series_named("Study1", data_dir)
    nothing = series.image.with_array(np.zeros(series.image.shape, np.uint8))
    ds = seg_write.encode_label_map(measure(nothing, series=series, card=CARD), run=RUN)
    ds.save_as(tmp_path / "ours.dcm", enforce_file_format=True)
    (tmp_path / "meta.json").write_text(json.dumps([attributes(ds) for ds in series.sources]))

    printed = run_node("read.mjs", "meta.json", "ours.dcm", adapters=adapters, writer=writer, folder=tmp_path)

    assert counts_in(printed) == len(series.sources) * [{}]


def counts_in(printed):
    """Voxels of each value on each slice, as `read.mjs` prints them."""
    (per_slice,) = [line for line in printed.splitlines() if line.strip().startswith("{")]
    return [json.loads(counts) for counts in per_slice.split()]
