"""Files in, files out: the series of a folder, without a PACS."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import SegmentationStorage, generate_uid

from dicomnode.conditions import Conditions, Range
from dicomnode.domain import ResultForm
from dicomnode.errors import ResourceError, UnreadableInstanceError
from dicomnode.pipeline.folder import FolderWork, read_series, segment_folder
from dicomnode.settings import RouteSettings
from tests.pipeline_builders import MODEL, Scene, mr_series, tiny_weights

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def save(datasets: list[Dataset], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(datasets):
        ds.save_as(folder / f"{number:03d}", enforce_file_format=True)
    return str(datasets[0].SeriesInstanceUID)


def run(
    scene: Scene,
    folder: Path,
    out: Path,
    *,
    per_study: str = "every",
    results: tuple[ResultForm, ...] = (ResultForm.SEG,),
):
    routes = (
        RouteSettings(name="tiny", model=MODEL, per_study=per_study, where=Conditions(slices=Range(min=8))),
    )
    work = FolderWork(routes=routes, model_named=scene.tools.current_model, results=results, now=NOW)
    return segment_folder(folder, out, work=work)


def test_each_series_gives_a_segmentation_and_a_picture(scene, tmp_path):
    uids = {save(mr_series(seed), tmp_path / "in" / f"deep/{seed}") for seed in (1, 2)}

    outcomes = run(scene, tmp_path / "in", tmp_path / "out")

    assert {outcome.series_instance_uid for outcome in outcomes} == uids
    for outcome in outcomes:
        [(form, path)] = outcome.objects
        seg = dcmread(path)
        assert form == "seg"
        assert seg.SOPClassUID == SegmentationStorage
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == outcome.series_instance_uid
        with Image.open(outcome.picture_path) as picture:
            assert min(picture.size) > 50
        assert sum(voxels for _, voxels in outcome.voxels) > 0


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_what_is_no_image_is_passed_over_and_so_are_our_own_results(scene, tmp_path):
    folder = tmp_path / "in"
    uid = save(mr_series(), folder)
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").write_bytes(b"")
    (folder / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\xff\xff" + b"\xfe" * 64)
    whole = (folder / "000").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:300])

    run(scene, folder, folder)  # the results lie among the images
    (again,) = run(scene, folder, folder)

    assert (again.series_instance_uid, again.reason) == (uid, "")


def test_copies_of_one_image_count_once(scene, tmp_path):
    series = mr_series()
    save(series, tmp_path / "in" / "a")
    save(series[:3], tmp_path / "in" / "b")

    assert [len(found) for found in read_series(tmp_path / "in").values()] == [8]
    (outcome,) = run(scene, tmp_path / "in", tmp_path / "out")
    assert outcome.reason == ""


def test_a_series_that_cannot_be_segmented_is_named_with_the_reason(scene, tmp_path):
    good, short = mr_series(1), mr_series(2, shape=(4, 12, 14))
    save(good, tmp_path / "in" / "good")
    short_uid = save(short, tmp_path / "in" / "short")

    outcomes = {
        outcome.series_instance_uid: outcome for outcome in run(scene, tmp_path / "in", tmp_path / "out")
    }

    assert len(outcomes[good[0].SeriesInstanceUID].objects) == 1
    assert "4 slices, at least 8 wanted" in outcomes[short_uid].reason
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_nothing_found_is_said_and_nothing_is_written(scene, tmp_path):
    scene.use(tiny_weights(background=1000.0))
    save(mr_series(), tmp_path / "in")

    (outcome,) = run(scene, tmp_path / "in", tmp_path / "out")

    assert outcome.objects == ()
    assert "no voxel" in outcome.reason
    assert [str(path) for path in (tmp_path / "out").iterdir()] == [outcome.picture_path]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_series_uid_that_is_a_path_does_not_lead_out_of_the_folder(scene, tmp_path):
    series = mr_series()
    for ds in series:
        ds.SeriesInstanceUID = "../../escaped"
    save(series, tmp_path / "in")

    (outcome,) = run(scene, tmp_path / "in", tmp_path / "a" / "out")

    assert "malformed" in outcome.reason
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_folder_without_an_image_says_so(scene, tmp_path):
    (tmp_path / "in").mkdir()

    with pytest.raises(UnreadableInstanceError, match="no DICOM image in this folder or below it"):
        run(scene, tmp_path / "in", tmp_path / "out")


def test_a_place_for_results_that_is_a_file_is_said_before_the_work(scene, tmp_path):
    save(mr_series(), tmp_path / "in")
    (tmp_path / "out").write_text("in the way")

    with pytest.raises(ResourceError, match="cannot use"):
        run(scene, tmp_path / "in", tmp_path / "out")


def test_of_the_series_of_a_study_the_best_is_segmented_where_the_route_says_so(scene, tmp_path):
    one_study, folder = generate_uid(), tmp_path / "in"
    short, long = (mr_series(n, shape=(n, 12, 14), study_uid=one_study) for n in (8, 10))
    short_uid, long_uid, other = (
        save(series, folder / name) for name, series in (("a", short), ("b", long), ("c", mr_series(3)))
    )

    outcomes = {
        one.series_instance_uid: one for one in run(scene, folder, tmp_path / "out", per_study="best")
    }

    assert [bool(outcomes[uid].objects) for uid in (short_uid, long_uid, other)] == [False, True, True]
    assert f"{long_uid} is better: " in outcomes[short_uid].reason


def test_when_the_best_series_of_a_study_in_a_folder_is_damaged_the_next_best_is_segmented(scene, tmp_path):
    one_study, folder = generate_uid(), tmp_path / "in"
    short, long = (mr_series(n, shape=(n, 12, 14), study_uid=one_study) for n in (8, 10))
    for ds in long:
        ds.PixelData = ds.PixelData[:-8]
    uids = save(short, folder / "a"), save(long, folder / "b")

    outcomes = {
        one.series_instance_uid: one for one in run(scene, folder, tmp_path / "out", per_study="best")
    }

    assert [bool(outcomes[uid].objects) for uid in uids] == [True, False]


def test_every_form_that_is_asked_for_is_written(scene, tmp_path):
    uid = save(mr_series(), tmp_path / "in")

    (outcome,) = run(scene, tmp_path / "in", tmp_path / "out", results=tuple(ResultForm))

    assert {form for form, _ in outcome.objects} == set(ResultForm)
    assert (tmp_path / "out" / f"{uid}.sc-2.dcm").is_file()
    assert {str(path) for path in (tmp_path / "out").iterdir()} == {
        outcome.picture_path,
        *(path for _, path in outcome.objects),
    }
