"""OHIF 3.13.2 in Chromium, before an Orthanc: it shows our results as they were written, on the right anatomy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicomnode.imaging import seg_write
from dicomnode.imaging.findings import Findings, Run, measure
from dicomnode.imaging.result_header import series_description
from tests.browser import screen, viewer_server
from tests.imaging_builders import NOW, make_card, part_10
from tests.interop.seg_cases import read_series, series_named

CARD = make_card()
RUN = Run(created_at=NOW, revision="as received")
SERIES_NUMBERS = {"labelmap": 9000, "seg": 9001, "sr": 9101, "rtstruct": 9201}
SERIES = {
    "hippocampus odd": "hippocampus_dicom/Study1",
    "hippocampus": "hippocampus_dicom/Study2",
    "prostate oblique": "studies/prostatex_0207/015689445322",
    "PET": "studies/acrin_nsclc_petct/317561081015",
}
SHOWN = [
    ("hippocampus", "seg"),
    ("hippocampus", "labelmap"),
    ("hippocampus odd", "labelmap"),
    ("prostate oblique", "seg"),
    ("PET", "seg"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was written, and what the viewer made of it."""

    findings: Findings
    listed: Any  # ohif.Listed
    segments: tuple[Any, ...]  # ohif.Shown
    masks: dict[tuple[str, int], NDArray[np.uint8]]
    problems: tuple[str, ...]
    messages: tuple[str, ...]
    plain: screen.RGB
    overlaid: screen.RGB
    expected: screen.Labels  # on the same canvas


@pytest.fixture(scope="module")
def archived(address: str, data_dir: Path) -> Callable[[str], Findings]:
    """A function that puts a series and our results on it into the archive, once."""
    known: dict[str, Findings] = {}

    def archive(name: str) -> Findings:
        if name not in known:
            series = read_series(data_dir / SERIES[name])
            labels = series.image.with_array(screen.lopsided_labels(series.image.array))
            found = measure(labels, series=series, card=CARD)
            viewer_server.store(address, [part_10(ds) for ds in series.sources])
            results = [*seg_write.encode_binary(found, run=RUN), seg_write.encode_label_map(found, run=RUN)]
            viewer_server.store(address, [part_10(ds) for ds in results])
            known[name] = found
        return known[name]

    return archive


@pytest.fixture(scope="module", params=SHOWN, ids=" ".join)
def seen(request: pytest.FixtureRequest, viewer: Any, archived: Callable[[str], Findings], tmp_path_factory) -> Seen:
    """Open the study and the segmentation as a reader does, and look."""
    name, form = request.param
    found = archived(name)
    k = int(np.argmax(np.count_nonzero(found.labels, axis=(1, 2))))
    frame = found.stack.frames[k]
    key = (frame.sop_instance_uid, frame.frame_number)
    viewer.open_study(str(found.stack.first.StudyInstanceUID))
    listed = viewer.listed(SERIES_NUMBERS[form])
    viewer.show(key)
    plain = viewer.canvas()
    viewer.open_result(SERIES_NUMBERS[form])
    viewer.show(key)
    overlaid = viewer.canvas()
    Image.fromarray(overlaid).save(tmp_path_factory.mktemp("shot") / f"{name} {form}.png")
    return Seen(
        findings=found,
        listed=listed,
        segments=viewer.segments(),
        masks=viewer.masks(),
        problems=tuple(viewer.problems),
        messages=tuple(viewer.messages()),
        plain=plain,
        overlaid=overlaid,
        expected=screen.labels_on_canvas(frame, found.labels[k], viewer.to_canvas, overlaid.shape[:2]),
    )


def test_a_segmentation_is_listed_with_its_description(seen: Seen) -> None:
    assert (seen.listed.modality, seen.listed.description) == ("SEG", series_description(CARD))


def test_a_segmentation_opens_without_a_complaint(seen: Seen) -> None:
    assert seen.problems == ()
    assert seen.messages == ()


def test_labels_and_colours_are_those_of_the_card(seen: Seen) -> None:
    shown = {segment.number: segment for segment in seen.segments if segment.number}

    assert {number: segment.label for number, segment in shown.items()} == {
        segment.segment_number: segment.label for segment in CARD.segments
    }
    for segment in CARD.segments:
        # CIELab values are rounded to 16 bits
        assert np.abs(np.subtract(shown[segment.segment_number].rgb, segment.rgb)).max() <= 2


def test_every_voxel_lies_on_the_image_that_it_was_found_on(seen: Seen) -> None:
    labels, frames = seen.findings.labels, seen.findings.stack.frames

    for frame, plane in zip(frames, labels, strict=True):
        held = seen.masks[frame.sop_instance_uid, frame.frame_number]
        np.testing.assert_array_equal(held, plane, err_msg=frame.name)
    assert len(seen.masks) == len(frames)


def test_segments_are_drawn_where_the_geometry_of_the_image_puts_them(seen: Seen) -> None:
    drawn = screen.drawn_labels(seen.plain, seen.overlaid, [segment.rgb for segment in CARD.segments])

    for number in np.unique(seen.expected[seen.expected > 0]):
        d=screen.dice(drawn == number, seen.expected == number)
        print(number, d, [round(screen.dice(drawn == number, np.flip(seen.expected == number, axis)),2) for axis in (0,1,(0,1))])
        assert d >= 0.95


def test_segments_are_drawn_on_what_is_bright(seen: Seen) -> None:
    drawn = screen.drawn_labels(seen.plain, seen.overlaid, [segment.rgb for segment in CARD.segments])
    grey = seen.plain.mean(axis=-1)
    print(grey[drawn == 1].mean(), [grey[np.flip(drawn == 1, axis)].mean() for axis in (0, 1, (0, 1))])
    pass
