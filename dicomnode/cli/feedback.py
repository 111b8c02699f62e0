"""``dicomnode corrections feedback``: what readers made of the results, day by day, and the drift alarm."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.markup import escape

from dicomnode.cli.feedback_plot import draw
from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.errors import ConfigError, ModelFormatError
from dicomnode.ml.evaluation.drift import DriftState
from dicomnode.pipeline.figures import DAYS, LabelFigures, ModelDrift, daily, drift
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store, utc_now
from dicomnode.store import Store

MAXIMUM_DAYS = 366
WHAT_TO_DO = (
    "Look at the last corrections (`dicomnode corrections list`, `dicomnode corrections show`). "
    "If they are right and the version is at fault: `dicomnode models rollback"
)


def feedback(
    days: Annotated[int, typer.Option(min=1, max=MAXIMUM_DAYS, help="So many days, today included.")] = DAYS,
    model: Annotated[str | None, typer.Option(help="One model; without it, all.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Also draw the Dice of each review as a picture."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show per label and day how many results were corrected and how far, and whether a model has drifted.

    Of the results of a day: how many were corrected up to now. Of the reviews that came in on a day: Dice
    with our result, and volume bias, (ours - theirs) / theirs, where the label was changed.
    """
    now = utc_now()
    with opened_store(load_node_settings(config)) as store:
        drifts = _drifts(store, model)
        figures = daily(store, now=now, days=days, model=model)
        if plot is not None:
            since = now - timedelta(days=days)
            reviews = store.feedback.reviews(since=since, model_name=model)
            _save(draw(reviews, drifts, since=since, until=now), plot)
    if as_json:
        print_json({"days": figures, "drift": drifts})
        return
    _print_days(figures)
    _print_drift(drifts)
    print_alarms(drifts)
    if plot is not None:
        console.print(f"picture: {plot}", soft_wrap=True, markup=False)


def print_alarms(drifts: Iterable[ModelDrift]) -> None:
    """Say of each alarm what it is about, since when, and what to do; nothing where there is none."""
    for one in drifts:
        for state in one.alarms:
            console.print(_alarm(one, state), soft_wrap=True, highlight=False)
        if one.alarms:
            console.print(f"  {WHAT_TO_DO} {escape(one.model)}`.", soft_wrap=True, highlight=False)


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise ConfigError(
            f"--plot: {path} cannot be written ({error.strerror}); choose another file"
        ) from error


def _alarm(drift_of: ModelDrift, state: DriftState) -> str:
    since = state.since or drift_of.in_use_since
    return (
        f"[bold red]Drift[/] {escape(drift_of.version)}, [bold]{escape(state.label)}[/], "
        f"since {since.astimezone():%Y-%m-%d %H:%M}: {state.in_words}"
    )


def _drifts(store: Store, model: str | None) -> list[ModelDrift]:
    known = store.models.names()
    if model is not None and model not in known:
        raise ModelFormatError(
            f"no model at this site is called {model!r}; there is: {', '.join(known) or 'none'}"
        )
    found = (drift(store, name) for name in ([model] if model else known))
    return [one for one in found if one is not None]


def _print_days(figures: Sequence[LabelFigures]) -> None:
    columns = (
        "day",
        "model",
        "label",
        "results",
        "corrected",
        "reviews",
        "Dice: mean, median",
        "volume bias",
    )
    console.print(table("What readers made of the results", columns, (_day_row(one) for one in figures)))


def _day_row(one: LabelFigures) -> tuple[object, ...]:
    corrected = None if one.corrected_share is None else f"{one.corrected} ({one.corrected_share:.0%})"
    dice = None if one.dice_mean is None else f"{one.dice_mean:.3f}, {one.dice_median:.3f}"
    return (one.since, one.model, one.label, one.results, corrected, one.reviews, dice, _bias(one))


def _bias(one: LabelFigures) -> str | None:
    if one.volume_bias is None:
        return None
    spread = "" if one.volume_bias_sd is None else f" ± {one.volume_bias_sd:.1%}"
    return f"{one.volume_bias:+.1%}{spread}"


def _print_drift(drifts: Iterable[ModelDrift]) -> None:
    rows = (
        (one.version, state.label, state.figure, "ALARM" if state.alarm else "–", state.since, state.in_words)
        for one in drifts
        for state in one.states
    )
    columns = ("version in use", "label", "of", "alarm", "since", "figures")
    console.print(table("Drift", columns, rows))
