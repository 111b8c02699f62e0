"""``dicomnode evaluate``: predicted label maps against the truth, label by label."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicomnode.cli.evaluation_files import Evaluation, plain, write
from dicomnode.cli.evaluation_labels import Choice, choose
from dicomnode.cli.show import JsonOption, console, notes, print_json, table
from dicomnode.ml.evaluation.label_maps import Pair, check_grid, find_pairs, read_pair
from dicomnode.ml.evaluation.measures import TOLERANCE_MM, CaseMeasures, measure_case, values_of
from dicomnode.ml.evaluation.summary import RESAMPLES, Estimate, LabelSummary, summarise

USUAL_THREADS = min(4, len(os.sched_getaffinity(0)))
LISTED = 10
"""So many names are printed of what is left over; --json has all."""
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def evaluate(  # noqa: PLR0913, PLR0917  # typer makes an option of each argument
    predictions: Annotated[
        Path, typer.Argument(exists=True, help="Folder of predicted label maps (NIfTI), or one file.")
    ],
    truth: Annotated[
        Path, typer.Argument(exists=True, help="Folder of true label maps of the same names, or one file.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Names: labels.toml of a model, or nnU-Net's dataset.json. Default: all values.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(help="Names instead of a file: 1=liver,2=spleen, or 1+2=tumour for a region."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Folder for CSV, JSON and a picture of the figures."),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option(min=0, help="Distance that the surface Dice (NSD) forgives, in mm.")
    ] = TOLERANCE_MM,
    tolerance_for: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=MM", help="Another tolerance for one label; may be repeated."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the 95 % intervals; 0 leaves them out.")
    ] = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Cases measured at a time.")] = USUAL_THREADS,
    as_json: JsonOption = False,
) -> None:
    """Measure predicted label maps against the truth: Dice, HD95 in mm, surface Dice (NSD) and volumes.

    Files of the same name belong together. Prints a table with a 95 % interval over the cases for each mean;
    with --out the figures of every case and a picture are kept.
    """
    choice = choose(
        labels_file=labels,
        names=names or (),
        tolerance_mm=tolerance_mm,
        tolerance_for=tolerance_for or (),
    )
    pairing = find_pairs(predictions, truth)
    measured = _measure_all(pairing.pairs, choice, threads=threads)
    cases = tuple(case for case, _ in measured)
    values = {value for _, found in measured for value in found} - {choice.ignored}
    wanted = choice.labels(values)
    evaluation = Evaluation(
        predictions=predictions,
        truth=truth,
        labels=summarise(cases, labels=wanted, resamples=bootstrap, generator=np.random.default_rng(seed)),
        cases=cases,
        without_prediction=pairing.without_prediction,
        without_truth=pairing.without_truth,
        values_not_measured=tuple(sorted(values - {value for label in wanted for value in label.values})),
        resamples=bootstrap,
        seed=seed,
    )
    if out is not None:
        write(evaluation, out)
    if as_json:
        print_json(plain(evaluation))
    else:
        _print(evaluation)
    _print_left_over(evaluation)
    if out is not None:
        notes.print(f"written: {out}", soft_wrap=True, markup=False)


def _measure_all(
    pairs: Sequence[Pair], choice: Choice, *, threads: int
) -> list[tuple[CaseMeasures, tuple[int, ...]]]:
    """Measure all cases with a bar; all headers are looked at before the first voxels."""
    for pair in pairs:
        check_grid(pair)
    each = max(1, threads // len(pairs))
    with (
        Progress(*_COLUMNS, console=notes, disable=not notes.is_terminal) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        results = pool.map(lambda pair: _measure(pair, choice, threads=each), pairs)
        return list(bar.track(results, total=len(pairs), description="cases"))


def _measure(pair: Pair, choice: Choice, *, threads: int) -> tuple[CaseMeasures, tuple[int, ...]]:
    """Measure a case; also give the values that occur in it."""
    prediction, truth, spacing_mm = read_pair(pair)
    values = {*values_of(prediction), *values_of(truth)}
    case = measure_case(
        pair.case_id,
        prediction,
        truth,
        labels=choice.labels(values),
        spacing_mm=spacing_mm,
        ignored=choice.ignored,
        threads=threads,
    )
    return case, tuple(values)


def _print(evaluation: Evaluation) -> None:
    title = f"{len(evaluation.cases)} cases, mean"
    if evaluation.resamples:
        title += f" [95 % interval, bootstrap over cases, seed {evaluation.seed}]"
    tolerances = {one.tolerance_mm for one in evaluation.labels}
    at = f" at {tolerances.pop():g} mm" if len(tolerances) == 1 else ""
    columns = ("label", "cases", "Dice", f"NSD{at}", "HD95 mm, median", "HD95 mm, mean", "volume error")
    console.print(table(title, columns, (_row(one, with_tolerance=not at) for one in evaluation.labels)))


def _row(one: LabelSummary, *, with_tolerance: bool) -> tuple[object, ...]:
    partly = ((one.missed, "missed"), (one.invented, "invented"))
    cases = ", ".join([str(one.cases), *(f"{count} {what}" for count, what in partly if count)])
    tolerance = f"\nat {one.tolerance_mm:g} mm" if with_tolerance else ""
    error = one.volume_error_ml.mean
    ml = "" if error is None else f"{error:+.2f} ml"
    return (
        escape(one.label),
        cases,
        _words(one.dice, ".3f"),
        _words(one.surface_dice, ".3f") + tolerance,
        None if one.hd95_median_mm is None else f"{one.hd95_median_mm:.2f}",
        _words(one.hd95_mm, ".2f"),
        f"{ml}\n{_words(one.volume_error_percent, '+.1f', unit=' %')}".strip(),
    )


def _words(found: Estimate, form: str, *, unit: str = "") -> str:
    """Put a mean into words, and its interval below it."""
    if found.mean is None:
        return ""
    mean = f"{found.mean:{form}}{unit}"
    return mean if found.lower is None else f"{mean}\n[{found.lower:{form}}, {found.upper:{form}}]"


def _print_left_over(evaluation: Evaluation) -> None:
    """Say on standard error what was not measured."""
    for what, names in (
        ("without prediction, not counted", evaluation.without_prediction),
        ("without truth, not counted", evaluation.without_truth),
        ("values that no label names, not measured", evaluation.values_not_measured),
    ):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            shown = ", ".join(map(str, names[:LISTED]))
            notes.print(f"{what} ({len(names)}): {shown}{more}", soft_wrap=True, markup=False)
