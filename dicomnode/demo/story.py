"""The main job: the whole loop on this machine, step by step, each shown to have really happened."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from pydicom import Dataset, dcmread
from rich.console import Console

from dicomnode.cli.show import console
from dicomnode.demo import facts, report
from dicomnode.demo.inputs import InputSeries, find_series, write_mni_series
from dicomnode.demo.reader import ReaderEdit, correct
from dicomnode.demo.stage import MODEL, Cast, DemoError, Stage, build, call, call_json, is_listening
from dicomnode.domain import Recognition, ResultForm, SeriesState
from dicomnode.scp import sender
from dicomnode.settings import load_node_settings, shipped_models_folder
from dicomnode.store import CorrectionRecord, ResultRecord, Store

_READER_AE_TITLE = "READER"
_RELAXED = (
    "[yellow]Relaxed for a demonstration:[/] the gate judges with 1 hold-out case (normally at least 5) and a"
    " margin of 0.02 Dice (normally 0.01); an update may leave with 1 patient and 1 training step behind it "
    "(normally at least 10 and 100).\n"
)
_START_TIMEOUT_S = 120.0
_RESULT_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Play:
    """The play so far: the stage, who is on it, and how long each step took."""

    stage: Stage
    console: Console
    cast: Cast
    began: float = field(default_factory=monotonic)
    seconds: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """One step: a spinner while it runs, then a line with its seconds, then its remarks."""
        remarks: list[str] = []
        started = monotonic()
        with self.console.status(f"{what} ..."):
            yield remarks
        took = monotonic() - started
        self.seconds.append((what, round(took, 1)))
        self.console.print(
            f"[green]✓[/] {len(self.seconds):2d}. {what} [dim]({took:.1f} s)[/]", highlight=False
        )
        for remark in remarks:
            self.console.print(f"       {remark}", highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What became of the trained version and of the release."""

    trained: str
    gate: str
    adopted: str
    adoption: str
    release: int


def run(input_folder: Path | None, out: Path | None) -> None:
    """Play the whole loop and leave everything in one folder; returns only if every step happened.

    Raises
    ------
    DicomNodeError
        A step did not happen; the message says which and where the logs are.
    """
    folder = (out or Path("output") / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}").resolve()
    if folder.exists():
        raise DemoError(f"{folder} exists already; choose another folder with --out")
    stage = build(folder)
    console.print(f"[bold]dicomnode demo[/]: everything it makes is left in {folder}", soft_wrap=True)
    console.print(_RELAXED, soft_wrap=True)
    with Cast(logs=folder / "logs") as cast:
        summary = _play(Play(stage=stage, console=console, cast=cast), input_folder)
    report.write(summary, folder)
    report.show(summary, console)


def _play(play: Play, input_folder: Path | None) -> report.Summary:
    series = _prepare_images(play, input_folder)
    _start_aggregator(play)
    _start_site(play, series)
    with closing(Store.open(load_node_settings(play.stage.node_config).database_url)) as store:
        before = store.models.current(MODEL)
        results = _segment(play, series, store)
        edits = _edit(play, series, results)
        corrections = _send_back(play, edits, store)
        learned = _learn(play, store)
        pictures = _draw(play, series, results, edits)
    return report.Summary(
        folder=str(play.stage.folder),
        series=tuple(facts.summaries(series, results, corrections)),
        versions=report.Versions(
            before=before.version if before else "",
            trained=learned.trained,
            after=learned.adopted,
            release_before=1,
            release_after=learned.release,
        ),
        gate=learned.gate,
        adoption=learned.adoption,
        seconds=tuple(play.seconds),
        total_seconds=round(monotonic() - play.began, 1),
        pictures=tuple(str(path) for path in pictures),
    )


def _prepare_images(play: Play, input_folder: Path | None) -> list[InputSeries]:
    """Find or make the images to send."""
    with play.step("Prepare the images") as remarks:
        if input_folder is None:
            series = write_mni_series(play.stage.folder / "input", now=datetime.now(UTC))
            remarks.append("crops around both hippocampi of the MNI ICBM152 average brain, as MR images")
        else:
            series = find_series(input_folder)
            remarks.append(f"{len(series)} series found under {input_folder}")
    return series


def _start_aggregator(play: Play) -> None:
    """Publish the shipped model as the first release, and open the centre."""
    stage = play.stage
    with play.step("Start the aggregator with the shipped model as release 1") as remarks:
        call("aggregator", "publish", shipped_models_folder() / MODEL, "--config", stage.aggregator_config)
        play.cast.start("aggregator", "aggregate", "--config", stage.aggregator_config)
        play.cast.wait_for(
            "the aggregator", lambda: is_listening(stage.aggregator_port), timeout_s=_START_TIMEOUT_S
        )
        remarks.append(f"HTTPS on {stage.aggregator_url}, certificate made at this first start")


def _start_site(play: Play, series: Sequence[InputSeries]) -> None:
    """Enrol the node with a one-time code, then start it and the stand-in PACS."""
    stage = play.stage
    with play.step("Enrol the node, start it and a stand-in PACS") as remarks:
        remarks.extend(facts.choose_split(load_node_settings(stage.node_config), series))
        code = call_json("aggregator", "enrol-code", "demo-hospital", "--config", stage.aggregator_config)
        call("federation", "enrol", str(code["code"]), "--config", stage.node_config)
        play.cast.start(
            "pacs",
            "pacs",
            stage.pacs_folder,
            "--ae-title",
            stage.pacs.ae_title,
            "--port",
            str(stage.pacs.port),
        )
        play.cast.start("node", "run", "--config", stage.node_config)
        ports = (stage.pacs.port, stage.node.port)
        play.cast.wait_for("PACS and node", lambda: all(map(is_listening, ports)), timeout_s=_START_TIMEOUT_S)
        remarks.append(
            f"DICOM: node {stage.node.ae_title} on port {stage.node.port}, PACS {stage.pacs.ae_title}"
        )


def _segment(play: Play, series: Sequence[InputSeries], store: Store) -> dict[str, ResultRecord]:
    """Send the images and wait until the results are at the PACS; gives the results by source series."""
    with play.step("Send the images to the node by C-STORE") as remarks:
        files = [path for one in series for path in one.files]
        sender.send_many(files, play.stage.node, ae_title=play.stage.pacs.ae_title)
        remarks.append(f"{len(files)} images of {len(series)} series, each acknowledged with status 0000")
    with play.step("Segment, and send the results to the PACS") as remarks:
        uids = [one.series_instance_uid for one in series]
        play.cast.wait_for("the results", lambda: facts.are_settled(uids, store), timeout_s=_RESULT_TIMEOUT_S)
        results, reasons = {}, []
        for one in series:
            row = store.series.get(one.series_instance_uid)
            result = store.results.latest_for_series(one.series_instance_uid)
            is_delivered = row is not None and row.state is SeriesState.DELIVERED
            if is_delivered and result is not None and not result.is_empty:
                results[one.series_instance_uid] = result
            else:
                reasons.append(f"{one.title}: {row.reason if row else 'the node does not know it'}")
        if not results:
            raise DemoError("the node segmented none of the series; " + "; ".join(reasons))
        remarks += [f"[yellow]no result for {reason}[/]" for reason in reasons]
        remarks.append(
            f"{len(results)} results are at the PACS, in {play.stage.pacs_folder}: each a SEG for viewers, a "
            f"structured report with the volumes, and pictures for viewers that show neither"
        )
    return results


def _edit(
    play: Play, series: Sequence[InputSeries], results: dict[str, ResultRecord]
) -> dict[str, ReaderEdit]:
    """Correct every result as a reader would, in an object with UIDs of its own."""
    with play.step("Correct the results as a reader would") as remarks:
        edits = {}
        for one in series:
            if one.series_instance_uid in results:
                seg = _from_pacs(play.stage, results[one.series_instance_uid])
                edits[one.series_instance_uid] = correct(seg, [dcmread(path) for path in one.files])
        for one in series:
            if edit := edits.get(one.series_instance_uid):
                remarks.append(
                    f"{one.title}: {edit.edited_slices} slices edited, {edit.added_voxels} voxels added"
                )
    return edits


def _send_back(play: Play, edits: dict[str, ReaderEdit], store: Store) -> dict[str, CorrectionRecord]:
    """Send the corrected objects to the node and wait until each is kept as a case."""
    with play.step("Send the corrections back to the node") as remarks:
        sender.send_many([edit.ds for edit in edits.values()], play.stage.node, ae_title=_READER_AE_TITLE)
        uids = {edit.ds.SOPInstanceUID for edit in edits.values()}
        play.cast.wait_for(
            "the corrections to be read", lambda: facts.are_read(uids, store), timeout_s=_RESULT_TIMEOUT_S
        )
        records = {
            str(r.source_series_uid): r for r in store.corrections.list() if r.sop_instance_uid in uids
        }
        kept = [r for r in records.values() if r.case_id is not None]
        for record in kept:
            dice = ", ".join(f"{score.label} Dice {score.dice:.3f}" for score in record.scores)
            remarks.append(f"recognised as {record.recognition}, kept as a {record.split} case: {dice}")
        expected = (Recognition.CORRECTION, Recognition.PROBABLE_CORRECTION)
        if len(kept) != len(edits) or any(record.recognition not in expected for record in kept):
            raise DemoError(
                f"of {len(edits)} corrections {len(kept)} were recognised and kept; see `dicomnode status`"
            )
    return records


def _learn(play: Play, store: Store) -> Learned:
    """Train on the corrections, offer the difference to the federation, and take up its release."""
    stage = play.stage
    with play.step("Train on the corrections, and judge the outcome on the hold-out") as remarks:
        (trained,) = call_json("train", "--now", "--config", stage.node_config)
        remarks.append(str(trained["in_words"]))
        version = facts.in_use_after_training(trained, store, remarks, approve=_approve(stage))
    with play.step("Push the update, let the aggregator merge it, adopt the new release") as remarks:
        (exchanged,) = call_json("federation", "sync", "--now", "--config", stage.node_config)
        remarks += [
            f"to the federation: {exchanged['push']}",
            f"from the federation: {exchanged['adoption']}",
        ]
        release = facts.adopted_release(store, remarks, approve=_approve(stage))
    return Learned(
        trained=version,
        gate=str(trained["in_words"]),
        adopted=str(release.model_version),
        adoption=release.reason,
        release=release.version,
    )


def _approve(stage: Stage) -> Callable[[str], object]:
    """What a person does when the gate has too few cases to decide."""
    return lambda version: call(
        "models", "promote", version, "--by", "demonstration", "--config", stage.node_config
    )


def _draw(
    play: Play, series: Sequence[InputSeries], results: dict[str, ResultRecord], edits: dict[str, ReaderEdit]
) -> list[Path]:
    """Leave a picture of every result over its image, and of what the reader made of it."""
    with play.step("Draw the pictures"):
        pictures = []
        for number, one in enumerate(series, 1):
            if one.series_instance_uid in results:
                ours = _from_pacs(play.stage, results[one.series_instance_uid])
                theirs = edits[one.series_instance_uid].ds
                pictures += report.draw(one, ours, theirs, play.stage.folder, number=number)
    return pictures


def _from_pacs(stage: Stage, result: ResultRecord) -> Dataset:
    """The result as the PACS has it, not as the node says it sent it."""
    sent = next(one for one in result.objects if one.form is ResultForm.SEG)
    path = stage.pacs_folder / sent.series_instance_uid / f"{sent.sop_instance_uid}.dcm"
    if not path.is_file():
        raise DemoError(f"the node says that {sent.sop_instance_uid} was delivered, but {path} is not there")
    return dcmread(path)
