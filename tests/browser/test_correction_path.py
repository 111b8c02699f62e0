"""The whole way round: our result, a reader's edit in OHIF 3.13.2, the archive's rule, the node's list.

What the node lists is worked out a second time here: from the voxels that the viewer held when it had opened
our result and when it saved, and from the object that the archive has of it, read with pydicom alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode.domain import Destination, ResultForm, SeriesState
from dicomnode.imaging.results import seg_write
from tests.browser import viewer_server
from tests.browser.conftest import Programs
from tests.browser.round_trip import (
    LIMIT_S,
    ROUTING,
    Images,
    Labels,
    RoundTrip,
    read_images,
    read_segmentation,
    scores,
)
from tests.conftest import take_free_port
from tests.imaging_builders import part_10
from tests.peers import LOOPBACK, Orthanc, start_orthanc
from tests.story.site import running, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BINARY, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
SYNTAXES = {BINARY: "1.2.840.10008.1.2.1", LABEL_MAP: "1.2.840.10008.1.2.5"}
NUMBERS = {BINARY: seg_write.FIRST_SERIES_NUMBER, LABEL_MAP: seg_write.LABEL_MAP_SERIES_NUMBER}
STUDIES = ("Study2", "Study3")  # 48 x 36 and 50 x 34 pixels


Edit = Callable[[RoundTrip, Images, Labels], None]
"""What a reader does to the labels that the viewer loaded."""


def nothing(trip: RoundTrip, images: Images, loaded: Labels) -> None:
    """Look."""


def brush(trip: RoundTrip, images: Images, loaded: Labels) -> None:
    """Widen segment 1 in a slice near its lower end and segment 2 in one near its upper end, by mouse."""
    for number, place in ((1, 2), (2, -3)):
        index = int(np.flatnonzero((loaded == number).any(axis=(1, 2)))[place])
        row, column = np.argwhere(loaded[index] == number)[0]
        ends = [images.point_mm(index, row, column), images.point_mm(index, row - 4, column - 3)]
        trip.viewer.show((images.uids[index], 1))
        trip.viewer.brush(number, np.stack(ends), radius_mm=2.0)


def write(trip: RoundTrip, images: Images, loaded: Labels) -> None:
    """Draw in the first slice and in the last but one, clear a slice, give a part to the other segment."""
    labels = loaded.copy()
    first, second = (np.flatnonzero((labels == number).any(axis=(1, 2))) for number in (1, 2))
    labels[0, 3:6, 2:9] = 1
    labels[-2, 30:34, 10:12] = 2
    cleared, shared = labels[second[-4]], labels[first[len(first) // 2]]
    cleared[cleared == 2] = 0
    upper = shared[: int(np.argwhere(shared == 1)[:, 0].mean())]
    upper[upper == 1] = 2
    trip.write(images, labels)


def erase(trip: RoundTrip, images: Images, loaded: Labels) -> None:
    """Take segment 2 away, and the upper quarter of segment 1."""
    labels = np.where(loaded == 1, loaded, 0).astype(np.uint8)
    first = np.flatnonzero(labels.any(axis=(1, 2)))
    labels[first[3 * len(first) // 4] :] = 0
    trip.write(images, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Which of our objects is opened, what is done, and the class in which the viewer saves."""

    study: str
    opens: str
    edit: Edit
    saves: str


CASES = {
    "label map, unchanged": Case(study="Study2", opens=BINARY, edit=nothing, saves=LABEL_MAP),
    "label map, brush": Case(study="Study2", opens=BINARY, edit=brush, saves=LABEL_MAP),
    "binary, unchanged": Case(study="Study2", opens=BINARY, edit=nothing, saves=BINARY),
    "binary, voxels": Case(study="Study2", opens=BINARY, edit=write, saves=BINARY),
    "label map, voxels": Case(study="Study3", opens=LABEL_MAP, edit=write, saves=LABEL_MAP),
    "label map, erased": Case(study="Study3", opens=LABEL_MAP, edit=erase, saves=LABEL_MAP),
}
SAVED_TWICE = ["label map, unchanged", "binary, unchanged", "label map, erased"]
BINARIES = [name for name, case in CASES.items() if case.saves == BINARY]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An object from its opening in the viewer to the node's list."""

    case: Case
    images: Images
    ours: Labels  # in the object that was opened
    loaded: Labels  # in the viewer
    kept: Labels  # in the viewer when it was saved
    names: Mapping[int, str]
    stored: bytes  # as the archive has it
    record: Mapping[str, Any]

    @property
    def ds(self) -> Dataset:
        return dcmread(BytesIO(self.stored))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedAgain:
    """What came of a second saving."""

    ds: Dataset
    record: Mapping[str, Any]


@pytest.fixture(scope="module")
def trip(programs: Programs, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundTrip]:
    """All that runs; the images went to the archive, by its rule to the node, and our results came back."""
    from tests.browser import ohif  # noqa: PLC0415  playwright may be absent

    folder = tmp_path_factory.mktemp("round_trip")
    ports = [take_free_port() for _ in range(4)]
    archive = Destination(
        name="archive",
        ae_title="ORTHANC",
        host=LOOPBACK,
        port=ports[2],
        results=(ResultForm.SEG, ResultForm.LABEL_MAP),
    )
    site = write_config(folder / "node", port=ports[0], web_port=ports[1], destinations=[archive])
    images = {name: read_images(data_dir / "hippocampus_dicom" / name) for name in STUDIES}
    with ExitStack() as stack:
        orthanc = start_archive(folder, programs, ports[2:], site.destination)
        stack.callback(orthanc.stop)
        addresses = {
            saves: stack.enter_context(serve_viewer(programs, orthanc, saving))
            for saves, saving in ((LABEL_MAP, None), (BINARY, viewer_server.SAVES_BITMAPS))
        }
        stack.enter_context(running(site))
        for one in images.values():
            viewer_server.store(addresses[LABEL_MAP], [part_10(ds) for ds in one.datasets])
        viewer = stack.enter_context(ohif.browse(programs.chromium, addresses[LABEL_MAP]))
        for one in images.values():
            site.wait_for(one.series_instance_uid, SeriesState.DELIVERED, limit_s=LIMIT_S)
        yield RoundTrip(site=site, orthanc=orthanc, viewer=viewer, addresses=addresses, images=images)


def start_archive(folder: Path, programs: Programs, ports: list[int], node: Destination) -> Orthanc:
    """An Orthanc as docs/viewers.md sets one up."""
    rule = folder / "routing.lua"
    rule.write_text(ROUTING)
    return start_orthanc(
        folder,
        ports[0],
        ports[1],
        {"node": node},
        options={
            "Plugins": [str(programs.dicom_web)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "LuaScripts": [str(rule)],
            "UnknownSopClassAccepted": True,  # for label maps by C-STORE
        },
    )


def serve_viewer(
    programs: Programs, orthanc: Orthanc, saving: Mapping[str, object] | None
) -> AbstractContextManager[str]:
    """OHIF before an archive, told how to save."""
    archive = f"http://{LOOPBACK}:{orthanc.http_port}"
    return viewer_server.serve(programs.viewer, archive=archive, port=take_free_port(), saving=saving)


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, trip: RoundTrip, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """One of the cases, done; the object and a picture stay in the tests' output folder."""
    name, case = request.param, CASES[request.param]
    folder, images = tmp_path_factory.mktemp("saved"), trip.images[case.study]
    loaded = trip.open(case.study, series_number=NUMBERS[case.opens], saves=case.saves)
    case.edit(trip, images, loaded)
    kept, segments = trip.held(images), trip.viewer.segments()
    trip.viewer.page.screenshot(path=folder / f"{name}.png")
    stored = trip.save(name)
    (folder / f"{name}.dcm").write_bytes(stored)
    return Saved(
        case=case,
        images=images,
        ours=read_segmentation(trip.sent(images, NUMBERS[case.opens]), images),
        loaded=loaded,
        kept=kept,
        names={segment.number: segment.label for segment in segments if segment.number},
        stored=stored,
        record=trip.listed(str(dcmread(BytesIO(stored)).SOPInstanceUID)),
    )


@pytest.fixture(scope="module")
def saved_again(saved: Saved, trip: RoundTrip, tmp_path_factory: pytest.TempPathFactory) -> SavedAgain:
    """What the viewer shows after it has saved, saved once more."""
    folder = tmp_path_factory.mktemp("again")
    trip.viewer.page.screenshot(path=folder / "again.png")
    ds = dcmread(BytesIO(trip.save("again")))
    ds.save_as(folder / "again.dcm")
    return SavedAgain(ds=ds, record=trip.listed(str(ds.SOPInstanceUID)))


def test_the_viewer_loads_what_the_node_sent(saved: Saved) -> None:
    assert {1, 2} <= set(np.unique(saved.ours))
    np.testing.assert_array_equal(saved.loaded, saved.ours)


def test_the_archive_has_an_object_of_the_viewer_with_the_voxels_that_were_saved(saved: Saved) -> None:
    ds = saved.ds

    assert (ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) == (saved.case.saves, SYNTAXES[saved.case.saves])
    assert ds.Manufacturer == "Unspecified"
    np.testing.assert_array_equal(read_segmentation(ds, saved.images), saved.kept)


@pytest.mark.parametrize("saved", BINARIES, indirect=True)
def test_highdicom_reads_the_same_voxels_from_a_binary_object(saved: Saved) -> None:
    volume = hd.seg.Segmentation.from_dataset(saved.ds).get_volume(combine_segments=True)

    read = np.zeros_like(saved.kept)
    for index, plane in enumerate(volume.array):
        position = volume.map_indices_to_reference(np.array([[index, 0, 0]]))[0]
        read[saved.images.slice_at(position)] = plane
    np.testing.assert_array_equal(read, saved.kept)


def test_the_node_recognises_what_the_reader_did(saved: Saved) -> None:
    expected = "accepted_unchanged" if saved.case.edit is nothing else "probable_correction"

    assert saved.record["recognition"] == expected, saved.record
    assert saved.record["source_series_uid"] == saved.images.series_instance_uid


def test_the_node_lists_exactly_the_edited_slices_and_voxels(saved: Saved) -> None:
    expected = scores(saved.loaded, saved.kept, saved.names)

    is_edited = any(score["edited_slices"] for score in expected.values())
    assert is_edited == (saved.case.edit is not nothing)
    listed = {score["label"]: score for score in saved.record["scores"]}
    assert listed.keys() == expected.keys()
    for label, score in expected.items():
        found = {key: listed[label][key] for key in score}
        assert found == {**score, "dice": pytest.approx(score["dice"], abs=1e-9)}, label


def test_the_node_keeps_what_the_archive_has(saved: Saved, trip: RoundTrip) -> None:
    with trip.site.store() as store:
        instance = store.series.instance(saved.record["sop_instance_uid"])
    assert instance is not None

    kept = dcmread(trip.site.spool.path_of(instance))

    assert kept.file_meta.TransferSyntaxUID == SYNTAXES[saved.case.saves]
    assert kept == saved.ds


@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="after saving, OHIF 3.13.2 holds the first frame of what it saved in every slice",
)
@pytest.mark.parametrize("saved", SAVED_TWICE, indirect=True)
def test_what_was_saved_may_be_saved_again(saved: Saved, saved_again: SavedAgain) -> None:
    np.testing.assert_array_equal(read_segmentation(saved_again.ds, saved.images), saved.kept)


@pytest.mark.parametrize("saved", SAVED_TWICE, indirect=True)
def test_nothing_is_learned_from_what_the_viewer_garbled(saved: Saved, saved_again: SavedAgain) -> None:
    assert saved_again.record["case_id"] is None, saved_again.record
    assert saved_again.record["state"] != "kept"


def test_our_own_results_were_not_sent_back_and_nothing_is_set_aside(trip: RoundTrip) -> None:
    status = trip.site.ask("status")

    assert status["troubled_jobs"] == status["set_aside"] == []
    assert trip.site.quarantine == []
    assert "loop_back" not in {record["recognition"] for record in trip.site.ask("corrections", "list")}
