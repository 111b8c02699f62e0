"""``dicomnode train``: what there is to learn from, and learn it now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dicomnode import node
from dicomnode.cli.show import ConfigOption, JsonOption, console, notes, print_json, table
from dicomnode.cli.training_watch import stopping
from dicomnode.domain import JobKind, JobState, Split, Verdict
from dicomnode.errors import InputError
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.ml.evaluation.suspicion import Suspicion
from dicomnode.ml.training.recipes import RECIPES
from dicomnode.pipeline import learn, trust
from dicomnode.pipeline.tools import Interrupted, Tools
from dicomnode.settings import NodeSettings, load_node_settings
from dicomnode.store.records import ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What became of a wish to train one model."""

    model: str
    trained: bool
    version: str | None  # what was made
    state: str | None  # what the gate made of it
    in_words: str
    run_folder: Path | None = None  # with the curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a training of one model would do now."""

    model: str
    version: str  # in use
    is_due: bool
    in_words: str
    recipe: str
    recipe_in_words: str
    new_cases: int
    earlier_cases: int  # learned before; repeated where the recipe says so
    hold_out_cases: int
    doubted: tuple[Suspicion, ...]  # of the new and of the hold-out cases
    lock: str | None  # while one stands, an accepted version waits for a person


def train(
    now: Annotated[
        bool, typer.Option("--now", help="Train at once instead of in the configured window.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what would be learned, how, and which corrections are doubted."
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Only this model; else all that the routes name.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the corrections that are new, and put the outcome before the gate.

    Without --now, only says what is new. With it, waits for the end and says what the gate decided. If the
    node is running, it trains itself and steps back for its studies; Ctrl-C then ends only the waiting.
    Else Ctrl-C stops after the step that runs; what was done is kept, and the same command goes on. The
    same corrections are never trained on twice.
    """
    settings = load_node_settings(config)
    with (
        stopping() as stop,
        _progress() as report,
        node.opened_tools(settings, should_stop=stop.is_set, progress=report) as tools,
    ):
        models = _models(model, tools)
        if dry_run:
            outlooks = [_outlook(one, tools) for one in models]
        else:
            outcomes = [_train(settings, tools, one, now=now) for one in models]
            made = [tools.store.models.get(one.version) if one.version else None for one in outcomes]
    if as_json:
        print_json(outlooks if dry_run else outcomes)
    elif dry_run:
        for outlook in outlooks:
            _print_outlook(outlook)
    else:
        for outcome, record in zip(outcomes, made, strict=True):
            _print_outcome(outcome, record)


def _models(wanted: str | None, tools: Tools) -> tuple[str, ...]:
    if wanted is None:
        return tools.model_names
    if wanted not in tools.model_names:
        raise InputError(f"--model {wanted}: the routes name {', '.join(tools.model_names) or 'no model'}")
    return (wanted,)


def _train(settings: NodeSettings, tools: Tools, model: str, *, now: bool) -> TrainingOutcome:
    plan = learn.enqueue_if_due(model, tools, is_wish=True) if now else learn.plan_training(model, tools)
    if not (now and plan.is_due):
        return TrainingOutcome(model=model, trained=False, version=None, state=None, in_words=plan.in_words)
    notes.print(f"training {model} on {plan.in_words}", highlight=False)
    row = node.run_job(settings, tools, JobKind.TRAIN_INCREMENT, plan.digest)
    folder = learn.run_folder(plan.digest, model, tools)
    made = [r for r in tools.store.models.history(model) if r.run_folder == str(folder)]
    return TrainingOutcome(
        model=model,
        trained=row.state is JobState.DONE and bool(made),
        version=made[-1].version if made else None,
        state=made[-1].state if made else None,
        in_words=row.reason or row.state,
        run_folder=folder,
    )


def _outlook(model: str, tools: Tools) -> Outlook:
    plan = learn.plan_training(model, tools)
    try:
        doubts = trust.suspicions(model, replace(tools, steps_back=False))
    except Interrupted as interruption:
        raise typer.Abort from interruption
    training = [info.case_id for info in tools.casebook.cases(model_name=model, split=Split.TRAINING)]
    held_out = [info.case_id for info in tools.casebook.cases(model_name=model, split=Split.HOLD_OUT)]
    lock = tools.store.locks.get(model)
    looked_at = [doubts[name] for name in (*plan.case_ids, *held_out) if name in doubts]
    return Outlook(
        model=model,
        version=tools.current_record(model).version,
        is_due=plan.is_due,
        in_words=plan.in_words,
        recipe=tools.training.recipe,
        recipe_in_words=RECIPES[tools.training.recipe].words,
        new_cases=len(plan.case_ids),
        earlier_cases=len(set(training) - set(plan.case_ids)),
        hold_out_cases=len(held_out),
        doubted=tuple(one for one in looked_at if one.reasons),
        lock=None if lock is None else lock.in_words,
    )


def _print_outlook(found: Outlook) -> None:
    rows = (
        ("version in use", found.version),
        ("new", found.in_words),
        ("would train", "yes" if found.is_due else "no"),
        ("recipe", f"{found.recipe}: {found.recipe_in_words}"),
        ("learned before", f"{found.earlier_cases} cases"),
        ("judged on", f"{found.hold_out_cases} hold-out cases"),
        ("lock", found.lock),
    )
    console.print(table(found.model, ("", ""), rows))
    if found.doubted:
        doubts = ((one.case_id[:12], f"{one.weight:.2f}", "\n".join(one.reasons)) for one in found.doubted)
        console.print(table("Doubted corrections", ("case", "weight", "why"), doubts))


def _print_outcome(outcome: TrainingOutcome, record: ModelRecord | None) -> None:
    words = f"[bold]{escape(outcome.model)}[/]: {escape(outcome.in_words)}"
    console.print(words, highlight=False, soft_wrap=True)
    if record is not None and outcome.trained:
        _print_gate(GateReport.from_json(record.gate_report_json))
    curves = outcome.run_folder and outcome.run_folder / learn.CURVES_FILE
    if curves and curves.is_file():
        console.print(f"curves: {escape(str(curves))}", highlight=False, soft_wrap=True)


def _print_gate(report: GateReport) -> None:
    marks = {Verdict.ACCEPTED: "green", Verdict.REFUSED: "bold red", Verdict.INCONCLUSIVE: "yellow"}
    if not report.labels:
        return
    rows = (
        (
            one.label,
            one.cases,
            f"{one.current_dice:.3f} → {one.candidate_dice:.3f}",
            f"{one.delta_dice_lower:+.3f}",
            f"{one.current_hd95_mm:.1f} → {one.candidate_hd95_mm:.1f}",
        )
        for one in report.labels
    )
    columns = ("label", "cases", "Dice", "at worst", "HD95 in mm")
    title = f"Gate: [{marks[report.verdict]}]{report.verdict}[/]"
    console.print(table(title, columns, rows))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with the time left for each thing that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=notes) as bar:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report
