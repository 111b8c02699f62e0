"""How long a study waits for its result while the node trains, beside an idle node.

    python experiments/learning/latency.py [--studies 12] [--cases 24] [--threads 2] [--work DIR]

A site is made in a folder, with corrections of 24 patients; its `work` process is the one that hospitals run.
Studies are put before it one at a time, first while it has nothing else to do, then while it trains with the
default recipe. The wait runs from the last image to the result, less the quiet period. Then the same training
is done on a copy of the site without a break: the weights must be the same, bit for bit. Writes
``latency.json`` and ``latency.md`` beside this file.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean, median

import numpy as np
from data import DATA, REPOSITORY
from highdicom import Volume
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicomnode.demo import reader
from dicomnode.domain import JobKind, ModelOrigin
from dicomnode.imaging.results.mr_write import encode_series
from dicomnode.ml.training import dataset
from dicomnode.node import opened_tools
from dicomnode.pipeline import learn
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.pipeline.segment import segment_series
from dicomnode.pipeline.tools import Tools
from dicomnode.settings import NodeSettings, load_node_settings
from dicomnode.store.records import ModelRecord

HERE = Path(__file__).resolve().parent
MODEL = "hippocampus"
QUIET_S = 0.5
LEASE = timedelta(seconds=60)
TARGET_S = 2.0
LIMIT_S = 900.0


def main() -> None:
    """Measure, and write the table."""
    options = _options()
    shutil.rmtree(options.work, ignore_errors=True)
    site = options.work / "site"
    series = _series(options.cases + 2 * options.studies)
    settings = _settings(site, threads=options.threads)
    with opened_tools(settings) as tools:
        for one in series[: options.cases]:
            _correct(one, tools)
    idle = _measure(settings, series[options.cases : -options.studies], is_training=False)
    shutil.copytree(site / "data", options.work / "before")
    busy = _measure(settings, series[-options.studies :], is_training=True)
    interrupted = _trained(settings)
    shutil.rmtree(site / "data")
    shutil.move(options.work / "before", site / "data")
    with _working(settings) as tools:
        learn.enqueue_if_due(MODEL, tools, is_wish=True)
        _wait_for_training(tools)
    in_one_go = _trained(settings)
    _write(options, (idle, busy), interrupted, in_one_go)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "output" / "learning" / "latency")
    return parser.parse_args()


def _settings(site: Path, *, threads: int) -> NodeSettings:
    site.mkdir(parents=True)
    config = site / "node.toml"
    config.write_text(
        f"""
[node]
data_dir = {json.dumps(str(site / "data"))}
threads = {threads}
[work]
quiet_period_s = {QUIET_S}
tick_s = 0.1
poll_s = 0.05
device = "cpu"
[training]
days = []
minimum_hold_out_cases = 1
[[routes]]
name = "hippocampus"
model = "hippocampus"
where = {{ slices = {{ min = 16 }}, extent_mm = {{ max = 90.0 }} }}
""",
        encoding="utf-8",
    )
    return load_node_settings(config)


def _series(count: int) -> list[list[Dataset]]:
    """The first cases of the data as MR series of as many patients."""
    cases = dataset.open_folder(DATA, classes=3).cases[:count]
    return [_encode(case.read().image, patient=f"P{number}") for number, case in enumerate(cases)]


def _encode(image: Volume, *, patient: str) -> list[Dataset]:
    return encode_series(
        image.with_array(np.asarray(image.array, np.float32)),
        patient_id=patient,
        patient_name=f"{patient}^Study",
        study_description="Latency",
        series_description="T1",
        study_instance_uid=generate_uid(),
        series_instance_uid=generate_uid(),
        series_number=1,
        created_at=datetime.now(UTC),
    )


def _receive(datasets: Sequence[Dataset], tools: Tools) -> None:
    for ds in datasets:
        kept = tools.spool.write_result(ds, sender="SCANNER", created_at=tools.now())
        tools.store.series.record_instance(kept, now=tools.now())


def _correct(datasets: Sequence[Dataset], tools: Tools) -> None:
    """Take a study to a correction that is kept."""
    _receive(datasets, tools)
    tools.store.series.enqueue_quiet(tools.now() + timedelta(seconds=1), timedelta(0))
    _run(JobKind.SEGMENT_SERIES, tools)
    result = tools.store.results.latest_for_series(datasets[0].SeriesInstanceUID)
    stored = result and tools.store.series.instance(result.sop_instance_uid)
    if not stored:
        raise SystemExit("a study has no result")
    (seg,) = tools.spool.read([stored])
    _receive([reader.correct(seg, datasets).ds], tools)
    _run(JobKind.INGEST_CORRECTION, tools)


def _run(kind: JobKind, tools: Tools) -> None:
    later = replace(tools, now=lambda: datetime.now(UTC) + timedelta(seconds=2))
    job = tools.store.jobs.claim(later.now(), kinds={kind}, owner="experiment", lease=LEASE)
    if job is None:
        raise SystemExit(f"no {kind} is due")
    {JobKind.SEGMENT_SERIES: segment_series, JobKind.INGEST_CORRECTION: ingest_correction}[kind](job, later)


@contextmanager
def _working(settings: NodeSettings) -> Iterator[Tools]:
    """Run the `work` process of the site."""
    config = settings.node.data_dir.parent / "node.toml"
    with (config.with_name("work.log")).open("ab") as log, opened_tools(settings) as tools:
        process = subprocess.Popen(
            [sys.executable, "-m", "dicomnode.node", "--config", str(config)], stdout=log, stderr=log
        )
        try:
            time.sleep(10)  # until it has imported everything
            yield tools
        finally:
            process.terminate()
            process.wait()


def _measure(
    settings: NodeSettings, series: Sequence[Sequence[Dataset]], *, is_training: bool
) -> list[float]:
    generator = np.random.default_rng(0)
    waits: list[float] = []
    with _working(settings) as tools:
        _wait(series[0], tools)  # the model is loaded with the first one
        if is_training:
            learn.enqueue_if_due(MODEL, tools, is_wish=True)
        for one in series[1:]:
            if is_training:
                _wait_for_steps(tools)
            time.sleep(float(generator.uniform(0.5, 3.0)))
            waits.append(_wait(one, tools))
            print(f"{'training' if is_training else 'idle':8} {waits[-1]:6.2f} s", flush=True)
        if is_training:
            _wait_for_training(tools)
    return waits


def _wait(datasets: Sequence[Dataset], tools: Tools) -> float:
    """Seconds from the last image to the result, less the quiet period."""
    _receive(datasets, tools)
    start = time.monotonic()
    uid = datasets[0].SeriesInstanceUID
    while tools.store.results.latest_for_series(uid) is None:
        if time.monotonic() - start > LIMIT_S:
            raise SystemExit("no result came; see work.log")
        time.sleep(0.01)
    return time.monotonic() - start - QUIET_S


def _wait_for_steps(tools: Tools) -> None:
    """Wait until the training runs (again)."""
    start = time.monotonic()
    while not any(job.state == "running" for job in _trainings(tools)):
        if all(job.state == "done" for job in _trainings(tools)):
            raise SystemExit("the training ended before the last study; use more --cases")
        if time.monotonic() - start > LIMIT_S:
            raise SystemExit("the training does not run; see work.log")
        time.sleep(0.05)


def _wait_for_training(tools: Tools) -> None:
    start = time.monotonic()
    while any(job.state in ("ready", "running") for job in _trainings(tools)):
        if time.monotonic() - start > 3 * LIMIT_S:
            raise SystemExit("the training does not end; see work.log")
        time.sleep(0.5)


def _trainings(tools: Tools):  # type: ignore[no-untyped-def]  # rows of the queue
    return tools.store.jobs.list(kind=JobKind.TRAIN_INCREMENT)


def _trained(settings: NodeSettings) -> ModelRecord:
    with opened_tools(settings) as tools:
        (made,) = [one for one in tools.store.models.history(MODEL) if one.origin is ModelOrigin.TRAINED]
        return made


def _write(
    options: argparse.Namespace,
    waits: tuple[Sequence[float], Sequence[float]],
    interrupted: ModelRecord,
    in_one_go: ModelRecord,
) -> None:
    idle, busy = waits
    is_same = interrupted.weights_sha256 == in_one_go.weights_sha256
    more = mean(busy) - mean(idle)
    result = {
        "threads": options.threads,
        "corrections": options.cases,
        "training_steps": interrupted.steps,
        "idle_s": [round(one, 3) for one in idle],
        "training_s": [round(one, 3) for one in busy],
        "more_mean_s": round(more, 3),
        "more_worst_s": round(max(busy) - mean(idle), 3),
        "target_s": TARGET_S,
        "same_weights_as_in_one_go": is_same,
    }
    (HERE / "latency.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sameness = "the same, bit for bit, as" if is_same else "NOT those"
    rows = [("idle", idle), ("training", busy)]
    table = "\n".join(f"| {what} | {mean(s):.2f} | {median(s):.2f} | {max(s):.2f} |" for what, s in rows)
    (HERE / "latency.md").write_text(
        f"# A study that comes while the node trains\n\n{len(busy)} studies each, {options.threads} CPU "
        f"threads; seconds from the last image to the result, less the quiet period.\n\n"
        f"| node | mean | median | worst |\n|---|---|---|---|\n{table}\n\n"
        f"On average {more:+.2f} s, at worst {max(busy) - mean(idle):+.2f} s more than on an idle node "
        f"(aim: at most {TARGET_S:g} s). The training of {interrupted.steps} steps was put back each time "
        f"and went on; its weights are {sameness} without a break.\n",
        encoding="utf-8",
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
