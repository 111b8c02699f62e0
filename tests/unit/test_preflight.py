"""Whether a site is fit to run: every fault is found, and none hides another."""

from pathlib import Path

from dicomnode.preflight import check
from dicomnode.scp.archive import start as start_archive
from dicomnode.settings import NodeSettings
from tests.conftest import take_free_port
from tests.pipeline_builders import MODEL, write_tiny


def site(folder: Path, **changes: object) -> NodeSettings:
    """A site whose one model is tiny."""
    if not (folder / "packages").exists():
        write_tiny(folder / "packages" / MODEL)
    sections = {
        "node": {"data_dir": str(folder / "data")},
        "scp": {"minimum_free_gb": 0, "host": "127.0.0.1", "port": take_free_port()},
        "work": {"device": "cpu"},
        "models": {"folder": folder / "packages"},
        "routes": ({"name": "tiny", "model": MODEL},),
    }
    return NodeSettings.model_validate(sections | changes)


def faults(settings: NodeSettings) -> dict[str, str]:
    return {found.what: found.finding for found in check(settings) if found.is_sound is False}


def test_a_new_site_is_sound(tmp_path):
    assert faults(site(tmp_path)) == {}


def test_a_data_folder_that_cannot_be_made_hides_no_other_finding(tmp_path):
    (tmp_path / "data").write_text("in the way")
    settings = site(tmp_path)

    found = {one.what: one for one in check(settings)}

    assert "choose a folder that this user may write" in found["first start"].finding
    assert found["data folder"].is_sound is False
    assert found["database"].is_sound is False
    assert found["DICOM port"].is_sound is True


def test_a_route_to_a_model_that_is_not_there_hides_no_other_finding(tmp_path):
    settings = site(tmp_path, routes=({"name": "liver", "model": "liver"},))

    found = {one.what: one for one in check(settings)}

    assert "a route names the model 'liver'" in found["first start"].finding
    assert found["model liver"].is_sound is False
    assert found["database"].is_sound is True


def test_a_version_in_use_that_is_missing_on_the_shelf_is_a_fault(tmp_path):
    settings = site(tmp_path)
    assert faults(settings) == {}
    (folder,) = (settings.versions_dir / MODEL).iterdir()
    folder.rename(tmp_path / "elsewhere")

    assert "is not on this site's shelf" in faults(settings)[f"model {MODEL}"]


def test_a_host_that_is_not_of_this_machine_is_a_fault(tmp_path):
    host = "no.such.host.invalid"
    settings = site(tmp_path, scp={"minimum_free_gb": 0, "host": host, "port": take_free_port()})

    assert f"scp.host: '{host}'" in faults(settings)["DICOM port"]


def test_an_archive_that_images_are_to_be_fetched_from_must_answer_questions(tmp_path):
    port = take_free_port()
    archive = start_archive(tmp_path / "archive", ae_title="PACS", host="127.0.0.1", port=port)
    try:
        settings = site(
            tmp_path,
            destinations=({"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port},),
            corrections={"fetch_from": "pacs"},
        )
        found = faults(settings)
    finally:
        archive.stop()

    assert set(found) == {"archive of corrected images"}  # it takes objects, so the destination is sound
    assert "does not take Study Root Query/Retrieve" in found["archive of corrected images"]
