"""Opening a site, and running one job for a person who waits for it."""

from datetime import timedelta
from pathlib import Path

import pytest

from dicomnode import durable
from dicomnode.domain import JobKind, JobPriority, JobState
from dicomnode.errors import InputError
from dicomnode.node import open_casebook, opened_tools, prepare, run_job
from dicomnode.settings import NodeSettings
from tests.pipeline_builders import MODEL, write_tiny


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    """A site whose one model is tiny; its packages are in a folder of its own."""
    write_tiny(tmp_path / "packages" / MODEL)
    return NodeSettings.model_validate(
        {
            "node": {"data_dir": str(tmp_path / "data")},
            "scp": {"minimum_free_gb": 0},
            "work": {"poll_s": 0.05, "backoff_s": 600, "device": "cpu"},
            "models": {"folder": tmp_path / "packages"},
            "routes": ({"name": "tiny", "model": MODEL},),
        }
    )


def test_preparing_twice_installs_the_model_once(settings):
    prepare(settings)
    prepare(settings)

    with opened_tools(settings) as tools:
        (record,) = tools.store.models.history(MODEL)
        assert tools.current_record(MODEL) == record
        assert len(tools.store.models.switches(MODEL)) == 1


def test_a_second_start_keeps_the_key_of_the_patients(settings):
    prepare(settings)
    first = open_casebook(settings).patient_key("PAT-1")

    assert open_casebook(settings).patient_key("PAT-1") == first


def test_a_job_that_a_person_asks_for_is_run_to_its_end(settings):
    with opened_tools(settings) as tools:
        tools.store.jobs.enqueue(JobKind.TRAIN_INCREMENT, MODEL, "a" * 64, now=tools.now())

        row = run_job(settings, tools, JobKind.TRAIN_INCREMENT, "a" * 64)

    assert (row.state, row.reason) == (JobState.DONE, "nothing new to learn from")


def test_a_job_that_a_person_asks_for_is_left_to_a_node_that_is_running(settings):
    asked = 0

    def stop_after_a_while() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    with opened_tools(settings, should_stop=stop_after_a_while) as tools:
        tools.store.jobs.enqueue(JobKind.TRAIN_INCREMENT, MODEL, "a" * 64, now=tools.now())
        with durable.present(settings.node.data_dir / "work.lock"):
            waiting = run_job(settings, tools, JobKind.TRAIN_INCREMENT, "a" * 64)
        asked = 0
        ended = run_job(settings, tools, JobKind.TRAIN_INCREMENT, "a" * 64)

    assert (waiting.state, waiting.priority) == (JobState.READY, JobPriority.FORCED)
    assert ended.state is JobState.DONE


def test_a_job_that_waits_for_its_next_attempt_is_tried_at_once(settings):
    with opened_tools(settings) as tools:
        now = tools.now()
        jobs = tools.store.jobs
        jobs.enqueue(JobKind.TRAIN_INCREMENT, MODEL, "a" * 64, now=now)
        job = jobs.claim(now, kinds={JobKind.TRAIN_INCREMENT}, owner="w", lease=timedelta(seconds=60))
        jobs.retry(job, now=now, run_after=now + timedelta(hours=1), reason="the aggregator was away")

        row = run_job(settings, tools, JobKind.TRAIN_INCREMENT, "a" * 64)

    assert row.state is JobState.DONE


def test_a_fault_that_may_pass_is_told_instead_of_waited_for(settings):
    with opened_tools(settings) as tools:
        folder = tools.current_package(MODEL).folder
        folder.rename(folder.with_name("elsewhere"))
        tools.store.jobs.enqueue(JobKind.TRAIN_INCREMENT, MODEL, "b" * 64, now=tools.now())

        row = run_job(settings, tools, JobKind.TRAIN_INCREMENT, "b" * 64)

    assert row.state is JobState.READY
    assert "restore its folder" in row.reason
    assert row.run_after > row.updated_at


def test_a_job_that_nobody_queued_is_said(settings):
    with opened_tools(settings) as tools, pytest.raises(InputError, match="no push_update job"):
        run_job(settings, tools, JobKind.PUSH_UPDATE, "c" * 64)
