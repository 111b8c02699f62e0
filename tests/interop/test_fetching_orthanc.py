"""Orthanc as the archive that the images of a correction are fetched from, by C-GET and by C-MOVE."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicomnode.domain import JobKind, SeriesState
from dicomnode.errors import AssociationError
from dicomnode.scp import fetcher, query, server
from dicomnode.scp.fetcher import Fetched
from dicomnode.scp.query import Archive, Wanted
from dicomnode.settings import ScpSettings
from dicomnode.spool import Spool
from dicomnode.store import Store
from tests.peers import start_orthanc
from tests.wire.objects import data_set_bytes, dicom_files, make_image, write

AE_TITLE = "DICOMNODE"
ONLY = {"C-GET": {"AllowMove": False}, "C-MOVE": {"AllowGet": False}, "either": {}}


def now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


class Site:
    """A node's receiver beside an Orthanc that knows it as the modality ``node``."""

    def __init__(self, folder: Path, ports: Callable[[], int], stack: ExitStack, *, way: str) -> None:
        self.spool = Spool(folder / "spool", minimum_free_bytes=0)
        self.store = Store.open(f"sqlite:///{folder / 'node.sqlite'}")
        stack.callback(self.store.close)
        settings = ScpSettings(ae_title=AE_TITLE, host="127.0.0.1", port=ports())
        running = server.start(settings, spool=self.spool, store=self.store, now=now)
        stack.callback(running.stop, limit_s=2.0)
        node = {"AET": AE_TITLE, "Host": "127.0.0.1", "Port": running.port, **ONLY.get(way, {})}
        known = {} if way == "stranger" else {"node": node}
        self.orthanc = start_orthanc(folder, ports(), ports(), options={"DicomModalities": known})
        stack.callback(self.orthanc.stop)
        self.archive = Archive(destination=self.orthanc.destination, ae_title=AE_TITLE, answer_timeout_s=20)

    def fetch(self, path: Path, *, study: bool = True) -> Fetched | None:
        """Fetch the series of a file."""
        ds = dcmread(path, stop_before_pixels=True)
        wanted = Wanted(
            series_instance_uid=ds.SeriesInstanceUID,
            study_instance_uid=ds.StudyInstanceUID if study else None,
        )
        return fetcher.fetch_series(self.archive, wanted, spool=self.spool, store=self.store, now=now)

    def upload(self, files: list[Path]) -> None:
        """Put files into Orthanc."""
        for path in files:
            self.orthanc.upload(path)


@pytest.fixture
def start_site(tmp_path: Path, free_ports: Callable[[], int]) -> Iterator[Callable[[str], Site]]:
    """Start sites whose Orthanc gives images by the way named; ``stranger``: it does not know the node."""
    with ExitStack() as stack:
        yield lambda way: Site(tmp_path, free_ports, stack, way=way)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """The files of one series."""
    folder = tmp_path / "series"
    folder.mkdir()
    series_uid, study_uid = generate_uid(), generate_uid()
    made = [make_image(series_uid=series_uid, number=number, size=64) for number in range(1, 13)]
    for ds in made:
        ds.StudyInstanceUID = study_uid
    return [write(ds, folder) for ds in made]


@pytest.mark.parametrize("study", [True, False], ids=["study named", "study unknown"])
@pytest.mark.parametrize("way", ["C-GET", "C-MOVE"])
def test_orthanc_gives_a_series_and_it_is_not_segmented(start_site, series, way, study):
    site = start_site(way)
    site.upload(series)

    fetched = site.fetch(series[0], study=study)

    assert fetched is not None
    assert (fetched.images, fetched.way) == (12, way)
    held = site.store.series.instances_of(fetched.series_instance_uid)
    kept = {one.sop_instance_uid: data_set_bytes(site.spool.path_of(one)) for one in held}
    assert kept == {dcmread(path).SOPInstanceUID: data_set_bytes(path) for path in series}
    assert not site.store.fetches.is_unfinished(fetched.series_instance_uid)
    assert site.store.series.state(fetched.series_instance_uid) is SeriesState.SET_ASIDE
    assert site.store.series.enqueue_quiet(now() + timedelta(days=1), timedelta(seconds=1)) == 0
    assert site.store.jobs.list(kind=JobKind.SEGMENT_SERIES) == ()


def test_a_series_that_orthanc_fetches_for_us_and_routes_later_opens(start_site, series):
    site = start_site("either")
    site.upload(series)
    fetched = site.fetch(series[0])
    assert fetched is not None

    site.orthanc.send("node")

    assert site.store.series.state(fetched.series_instance_uid) is SeriesState.RECEIVING


def test_a_series_that_orthanc_has_not_is_not_there(start_site, series):
    site = start_site("either")
    site.upload(series)
    other = series[0].with_name("other.dcm")
    make_image().save_as(other, enforce_file_format=True)

    assert site.fetch(other) is None
    assert site.fetch(other, study=False) is None


@pytest.mark.parametrize("way", ["C-GET", "C-MOVE"])
def test_real_images_come_as_orthanc_keeps_them(start_site, data_dir, way):
    site = start_site(way)
    found = {}
    for path in dicom_files([data_dir / "transfer_syntaxes"]):
        ds = dcmread(path, stop_before_pixels=True)
        if ds.SOPClassUID in query.IMAGE_CLASSES:
            found.setdefault((ds.SeriesInstanceUID, ds.SOPInstanceUID), path)
    files = list(found.values())
    site.upload(files)

    for path in {series_uid: path for (series_uid, _), path in found.items()}.values():
        assert site.fetch(path) is not None

    for path in files:
        ds = dcmread(path)
        instance = site.store.series.instance(ds.SOPInstanceUID)
        assert instance is not None
        assert instance.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
        assert dcmread(site.spool.path_of(instance)).PixelData == ds.PixelData


def test_an_orthanc_that_does_not_know_the_node_is_named(start_site, series):
    site = start_site("stranger")
    site.upload(series)
    with pytest.raises(AssociationError, match=r"ended C-FIND .* allows it to this node"):
        site.fetch(series[0])
    with pytest.raises(AssociationError, match="ended C-FIND"):
        query.check(site.archive)
    assert site.store.series.list_series() == []


def test_the_check_of_an_orthanc_names_its_ways(start_site):
    assert "C-GET, else C-MOVE" in query.check(start_site("either").archive)
