"""DCMTK sends, the node segments, Orthanc receives, and other readers see what the model said."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from highdicom import Volume
from pydicom import Dataset, dcmread

from dicomnode.domain import ModelCard, SeriesState
from dicomnode.imaging.images.series import SeriesVolume, to_volume
from dicomnode.imaging.results import seg_write
from dicomnode.ml.inference import engine
from dicomnode.ml.shelf import ModelShelf
from tests.conftest import need_program, take_free_port
from tests.interop.seg_cases import HIPPOCAMPUS_STUDIES, on_grid
from tests.peers import Orthanc, need_dcmtk, start_orthanc, storescu

from .series import write_series
from .site import Site, running, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SERIES = (*HIPPOCAMPUS_STUDIES, "made here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One series, the object that Orthanc has of it, and what the model says of it."""

    source: SeriesVolume
    path: Path
    labels: Volume  # segment numbers on the image grid
    card: ModelCard

    @property
    def ds(self) -> Dataset:
        return dcmread(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A node and the Orthanc beside it."""

    site: Site
    orthanc: Orthanc
    folder: Path
    files: dict[str, tuple[Path, ...]]  # by name of the series


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Beside]:
    """A node whose results go to Orthanc; DCMTK has sent it each series."""
    need_dcmtk("storescu")
    folder = tmp_path_factory.mktemp("delivery")
    ports = [take_free_port() for _ in range(4)]
    node = write_config(folder / "plain", port=ports[0], web_port=ports[1])
    orthanc = start_orthanc(folder, ports[2], ports[3], {"node": node.destination})
    try:
        site = write_config(
            folder / "node", port=ports[0], web_port=ports[1], destinations=[orthanc.destination]
        )
        files = {
            name: tuple(sorted((data_dir / "hippocampus_dicom" / name).rglob("*.dcm")))
            for name in HIPPOCAMPUS_STUDIES
        }
        files["made here"] = write_series(folder / "made").files
        with running(site):
            for paths in files.values():
                sent = storescu(paths, site.destination)
                assert sent.returncode == 0, sent.stdout + sent.stderr
                said = sent.stdout + sent.stderr
                assert said.count("Received Store Response (Success)") == len(paths)
            yield Beside(site=site, orthanc=orthanc, folder=folder, files=files)
    finally:
        orthanc.stop()


@pytest.fixture(scope="module", params=SERIES)
def delivered(request: pytest.FixtureRequest, beside: Beside) -> Delivered:
    source = to_volume([dcmread(path) for path in beside.files[request.param]])
    uid = str(source.sources[0].SeriesInstanceUID)
    beside.site.wait_for(uid, SeriesState.DELIVERED)
    found = [content for content in beside.orthanc.files() if source_of(content) == uid]
    assert len(found) == 1
    path = beside.folder / f"{uid}.seg.dcm"
    path.write_bytes(found[0])
    with beside.site.store() as store:
        current = store.models.current("hippocampus")
        assert current is not None
    package = ModelShelf(beside.site.settings.versions_dir, device="cpu").package(current.version)
    classes = engine.predict(engine.load(package, device="cpu"), source.image)
    labels = seg_write.to_segment_numbers(classes, package.card)
    assert np.count_nonzero(labels.array) > 0
    return Delivered(source=source, path=path, labels=labels, card=package.card)


def source_of(content: bytes) -> str:
    ds = dcmread(BytesIO(content), stop_before_pixels=True)
    assert ds.Modality == "SEG"
    return str(ds.ReferencedSeriesSequence[0].SeriesInstanceUID)


def test_highdicom_reads_back_exactly_what_the_model_gave(delivered: Delivered) -> None:
    volume = hd.seg.segread(delivered.path).get_volume(combine_segments=True)

    np.testing.assert_array_equal(volume.match_geometry(delivered.source.image).array, delivered.labels.array)


def test_dcmqi_reads_back_exactly_what_the_model_gave(delivered: Delivered, tmp_path: Path) -> None:
    program = need_program("segimage2itkimage")
    options = ["--inputDICOM", str(delivered.path), "--outputDirectory", str(tmp_path), "--prefix", "out"]
    subprocess.run([program, *options], check=True, capture_output=True)

    for item in delivered.ds.SegmentSequence:
        picture = SimpleITK.ReadImage(tmp_path / f"out-{item.SegmentNumber}.nrrd")
        segment = delivered.card.segment_labelled(item.SegmentLabel)
        assert segment is not None
        np.testing.assert_array_equal(
            on_grid(picture, delivered.source.image), delivered.labels.array == segment.segment_number
        )
    listed = {item.SegmentNumber for item in delivered.ds.SegmentSequence}
    assert set(np.unique(delivered.labels.array)) - {0} <= listed


def test_dciodvfy_finds_no_error(delivered: Delivered) -> None:
    program = need_program("dciodvfy")
    run = subprocess.run([program, str(delivered.path)], capture_output=True, text=True, check=False)

    lines = (run.stdout + run.stderr).splitlines()
    assert any("Segmentation" in line for line in lines), lines  # it did look at the object
    assert [line for line in lines if line.startswith("Error")] == []


def test_what_orthanc_has_is_byte_for_byte_what_the_node_keeps(delivered: Delivered, beside: Beside) -> None:
    with beside.site.store() as store:
        kept = store.series.instance(str(delivered.ds.SOPInstanceUID))
    assert kept is not None

    ours = dcmread(beside.site.spool.path_of(kept))
    assert ours == delivered.ds
    assert ours.PixelData == delivered.ds.PixelData


def test_each_series_has_one_result_and_is_delivered_in_the_status(beside: Beside) -> None:
    for paths in beside.files.values():
        beside.site.wait_for(str(dcmread(paths[0]).SeriesInstanceUID), SeriesState.DELIVERED)

    assert sorted(map(source_of, beside.orthanc.files())) == sorted(
        str(dcmread(paths[0]).SeriesInstanceUID) for paths in beside.files.values()
    )
    status = beside.site.ask("status")
    assert status["series"] == [["delivered", len(SERIES)]]
    assert status["destinations"] == [
        {"destination": "orthanc", "pending": 0, "sent": len(SERIES), "last_error": ""}
    ]
    assert status["troubled_jobs"] == status["set_aside"] == []


def test_what_orthanc_sends_back_is_taken_for_our_own_and_dropped(beside: Beside) -> None:
    for paths in beside.files.values():
        beside.site.wait_for(str(dcmread(paths[0]).SeriesInstanceUID), SeriesState.DELIVERED)
    before = beside.site.ask("status")

    beside.orthanc.send("node")  # fails where one is not answered with success

    assert beside.site.ask("status") == before
    assert beside.site.ask("corrections", "list") == []
    assert beside.site.quarantine == []
    assert len(beside.orthanc.files()) == len(SERIES)
