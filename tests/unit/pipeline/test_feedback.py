"""The drift alarm becomes known once: in the audit log and in the log."""

from datetime import timedelta

from structlog.testing import capture_logs

from dicomnode.pipeline.feedback import note_drift
from tests.feedback_builders import BACK, FRONT, MODEL, Readers
from tests.pipeline_builders import Scene

HOUR = timedelta(hours=1)


def drifted(scene: Scene, *, label: str) -> Readers:
    """Ten reviews as they should be, and three bad ones of one label."""
    readers = Readers(store=scene.tools.store)
    version = scene.tools.current_record(MODEL).version
    for number in range(13):
        dices = {FRONT: 0.9, BACK: 0.9} | ({label: 0.5} if number >= 10 else {})
        readers.review(version, dices, at=scene.clock() + number * HOUR)
    scene.later(24 * 3600)
    return readers


def alarms(scene: Scene) -> list[str]:
    return [one.subject for one in scene.tools.store.audit.list() if one.event == "drift_alarm"]


def test_an_alarm_is_told_once_in_the_audit_log_and_in_the_log(scene: Scene) -> None:
    drifted(scene, label=FRONT)
    version = scene.tools.current_record(MODEL).version
    with capture_logs() as lines:
        note_drift(MODEL, scene.tools)
        note_drift(MODEL, scene.tools)
    assert alarms(scene) == [f"{version} {FRONT}"]
    (line,) = lines
    assert (line["event"], line["log_level"], line["label"]) == ("drift alarm", "warning", FRONT)
    assert "0.900 ± 0.020 expected from 10 before" in line["figures"]


def test_each_label_has_an_alarm_of_its_own(scene: Scene) -> None:
    readers = drifted(scene, label=FRONT)
    note_drift(MODEL, scene.tools)
    for _ in range(3):
        version = scene.tools.current_record(MODEL).version
        readers.review(version, {FRONT: 0.5, BACK: 0.5}, at=scene.clock())
    note_drift(MODEL, scene.tools)
    version = scene.tools.current_record(MODEL).version
    assert alarms(scene) == [f"{version} {BACK}", f"{version} {FRONT}"]


def test_without_drift_or_model_nothing_is_told(scene: Scene) -> None:
    readers = Readers(store=scene.tools.store)
    readers.review(scene.tools.current_record(MODEL).version, {FRONT: 0.1}, at=scene.clock())
    note_drift(MODEL, scene.tools)
    note_drift("unknown", scene.tools)
    assert alarms(scene) == []
