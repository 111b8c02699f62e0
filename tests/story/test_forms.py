"""Each destination gets what it can show: the same finding in several forms, over the wire."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode.domain import ResultForm, SeriesState
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.ml.shelf import ModelShelf
from tests.conftest import need_program, take_free_port
from tests.peers import Program

from .series import Series, write_series
from .site import Site, objects_of, running, start_pacs, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WANTED = {
    "plain": (ResultForm.SEG,),
    "modern": (ResultForm.LABEL_MAP, ResultForm.SR),
    "everything": (ResultForm.SEG, ResultForm.SR, ResultForm.RTSTRUCT, ResultForm.SC),
    "report": (ResultForm.SR,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A series, and what each destination has of it."""

    site: Site
    series: Series
    objects: dict[str, list[Path]]

    def of(self, destination: str, modality: str) -> list[Dataset]:
        found = [dcmread(path) for path in self.objects[destination]]
        return [ds for ds in found if ds.Modality == modality]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """A node that has sent its results for one series to four peers."""
    folder = tmp_path_factory.mktemp("forms")
    peers: dict[str, Program] = {
        name: start_pacs(folder / name, port=take_free_port(), ae_title=name.upper()) for name in WANTED
    }
    try:
        destinations = [
            replace(peer.destination, name=name, results=WANTED[name]) for name, peer in peers.items()
        ]
        site = write_config(
            folder / "node", port=take_free_port(), web_port=take_free_port(), destinations=destinations
        )
        with running(site):
            series = write_series(folder / "made")
            series.send(site.destination)
            site.wait_for(series.series_instance_uid, SeriesState.DELIVERED)
        yield Sent(site=site, series=series, objects={name: objects_of(peer) for name, peer in peers.items()})
    finally:
        for peer in peers.values():
            peer.kill()


def modalities(sent: Sent, destination: str) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).Modality) for path in sent.objects[destination]}


def test_each_destination_has_the_forms_it_asked_for_and_no_other(sent: Sent) -> None:
    assert modalities(sent, "plain") == {"SEG"}
    assert modalities(sent, "modern") == {"SEG", "SR"}
    assert modalities(sent, "everything") == {"SEG", "SR", "RTSTRUCT", "OT"}
    assert modalities(sent, "report") == {"SR"}
    (binary,), (label_map,) = sent.of("plain", "SEG"), sent.of("modern", "SEG")
    assert (binary.SegmentationType, label_map.SegmentationType) == ("BINARY", "LABELMAP")
    assert len(sent.of("everything", "OT")) > 1


def test_both_segmentations_hold_the_voxels_that_the_site_keeps(sent: Sent) -> None:
    stack = only_stack([dcmread(path) for path in sent.series.files])
    with sent.site.store() as store:
        result = store.results.latest_for_series(sent.series.series_instance_uid)
        assert result is not None
        card = ModelShelf(sent.site.settings.versions_dir, device="cpu").package(result.model_version).card
    for (ds,) in (sent.of("plain", "SEG"), sent.of("modern", "SEG")):
        masks = seg_read.decode(ds, stack=stack, card=card).masks
        counts = {label: int(np.count_nonzero(mask)) for label, mask in masks.items()}
        assert counts == {label: voxels for label, voxels in result.voxels if voxels}
    kept = [one for one in result.objects if one.form is ResultForm.LABEL_MAP]
    assert [one.sop_instance_uid for one in kept] == [result.sop_instance_uid]


def test_a_report_names_the_segmentation_that_its_destination_has(sent: Sent) -> None:
    for destination in ("modern", "everything"):
        (report,), (seg,) = sent.of(destination, "SR"), sent.of(destination, "SEG")
        assert str(seg.SOPInstanceUID) in _referenced(report)
    (alone,) = sent.of("report", "SR")
    segs = {str(ds.SOPInstanceUID) for name in ("plain", "modern") for ds in sent.of(name, "SEG")}
    assert not segs & _referenced(alone)
    uids = {str(sent.of(name, "SR")[0].SOPInstanceUID) for name in ("modern", "everything", "report")}
    assert len(uids) == 3


def test_a_report_says_the_volumes(sent: Sent) -> None:
    (report,) = sent.of("everything", "SR")
    (seg,) = sent.of("everything", "SEG")
    with sent.site.store() as store:
        result = store.results.latest_for_series(sent.series.series_instance_uid)
    assert result is not None
    groups = hd.sr.srread(_path(sent, report)).content.get_volumetric_roi_measurement_groups()
    by_uid = {str(item.TrackingUID): str(item.SegmentLabel) for item in seg.SegmentSequence}
    assert len(groups) == len(by_uid)
    for group in groups:
        (volume,) = group.get_measurements(name=hd.sr.CodedConcept("118565006", "SCT", "Volume"))
        label = by_uid[str(group.tracking_uid)]
        assert volume.value == pytest.approx(dict(result.millilitres)[label], rel=1e-4)


def test_no_object_has_an_error_that_dciodvfy_knows_of(sent: Sent) -> None:
    program = need_program("dciodvfy")
    for path in sent.objects["everything"]:
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], path


def _path(sent: Sent, ds: Dataset) -> Path:
    return next(
        path
        for paths in sent.objects.values()
        for path in paths
        if dcmread(path, stop_before_pixels=True).SOPInstanceUID == ds.SOPInstanceUID
    )


def _referenced(ds: Dataset) -> set[str]:
    return {
        str(element.value)
        for element in ds.iterall()
        if element.keyword == "ReferencedSOPInstanceUID" and element.value
    }
