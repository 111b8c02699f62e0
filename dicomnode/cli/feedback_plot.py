"""A picture of the reviews over time: one panel for each label, with what is normal and the alarm."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from PIL import Image, ImageDraw

from dicomnode.imaging.pictures.preview import font
from dicomnode.ml.evaluation.drift import DriftState, Figure
from dicomnode.pipeline.figures import ModelDrift
from dicomnode.store.records import Review

WIDTH = 1120
PANEL_HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 44, 32
"""Between a panel's edge and its axes."""
FOOT = 36
DAY_TICKS = 6
BACKGROUND = (255, 255, 255)
INK = (30, 34, 40)
FAINT = (120, 126, 136)
GRID = (226, 229, 234)
NORMAL = (0, 114, 178)
NORMAL_BAND = (216, 233, 244)
ALARM = (200, 40, 30)
ALARM_BAND = (252, 228, 224)
RADIUS = 4
LEGEND = (
    "Dots: Dice of our label with the reader's; hollow: nothing was changed.  Blue: what is normal, ± 1 SD, "
    "since the version is in use.  Red: drift alarm."
)
NO_REVIEW = "No review came in within these days."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Where a moment and a Dice lie on the picture; `top` is that of the panel."""

    top: int
    since: datetime
    until: datetime
    lowest: float  # Dice at the foot

    def x(self, moment: datetime) -> int:
        share = (moment - self.since) / (self.until - self.since)
        return LEFT + round(min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT))

    def y(self, dice: float) -> int:
        share = (1.0 - max(dice, self.lowest)) / (1.0 - self.lowest)
        return self.top + TOP + round(share * (PANEL_HEIGHT - TOP - BOTTOM))


def draw(
    reviews: Sequence[Review], drifts: Sequence[ModelDrift], *, since: datetime, until: datetime
) -> Image.Image:
    """Draw the Dice of each review; what is normal and the alarm are those of the versions in use."""
    labels = sorted({(one.model_name, one.position, one.label) for one in reviews})
    height = max(len(labels), 1) * PANEL_HEIGHT + FOOT
    picture = Image.new("RGB", (WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for number, (model, _, label) in enumerate(labels):
        shown = [one for one in reviews if (one.model_name, one.label) == (model, label)]
        lowest = min(*(one.dice for one in shown), 0.9)
        axes = _Axes(top=number * PANEL_HEIGHT, since=since, until=until, lowest=int(lowest * 10) / 10)
        _panel(pen, axes, shown, next((one for one in drifts if one.model == model), None))
    if not labels:
        pen.text((LEFT, TOP), NO_REVIEW, fill=INK, font=font(18))
    pen.text((LEFT, height - FOOT), LEGEND, fill=FAINT, font=font(13))
    return picture


def _panel(
    pen: ImageDraw.ImageDraw, axes: _Axes, reviews: Sequence[Review], drift: ModelDrift | None
) -> None:
    label = reviews[0].label
    state = _dice_state(drift, label)
    pen.text((LEFT, axes.top + 14), f"{reviews[0].model_name}, {label}", fill=INK, font=font(18))
    if drift is not None and state is not None:
        _bands(pen, axes, drift, state)
    _grid(pen, axes)
    for review in reviews:
        _dot(pen, axes, review, state)


def _dice_state(drift: ModelDrift | None, label: str) -> DriftState | None:
    states = () if drift is None else drift.states
    return next((one for one in states if (one.label, one.figure) == (label, Figure.DICE)), None)


def _bands(pen: ImageDraw.ImageDraw, axes: _Axes, drift: ModelDrift, state: DriftState) -> None:
    mean, sd = state.baseline_mean, state.baseline_sd
    if mean is None or sd is None:
        return
    left, right = axes.x(drift.in_use_since), axes.x(axes.until)
    if state.since is not None:
        pen.rectangle((axes.x(state.since), axes.y(1.0), right, axes.y(axes.lowest)), fill=ALARM_BAND)
    pen.rectangle((left, axes.y(min(mean + sd, 1.0)), right, axes.y(mean - sd)), fill=NORMAL_BAND)
    pen.line((left, axes.y(mean), right, axes.y(mean)), fill=NORMAL, width=2)
    pen.line((left, axes.y(1.0), left, axes.y(axes.lowest)), fill=NORMAL, width=1)
    words = f"{drift.version}: {state.in_words}"
    colour = ALARM if state.alarm else FAINT
    pen.text((WIDTH - RIGHT, axes.top + 18), words, fill=colour, font=font(13), anchor="ra")


def _grid(pen: ImageDraw.ImageDraw, axes: _Axes) -> None:
    for tenth in range(round(axes.lowest * 10), 11):
        y = axes.y(tenth / 10)
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        if tenth % 2 == 0 or axes.lowest > 0.45:
            pen.text((LEFT - 8, y), f"{tenth / 10:.1f}", fill=FAINT, font=font(13), anchor="rm")
    step: timedelta = (axes.until - axes.since) / DAY_TICKS
    for tick in range(DAY_TICKS + 1):
        moment = axes.since + tick * step
        x = axes.x(moment)
        foot = axes.y(axes.lowest)
        pen.line((x, foot, x, foot + 4), fill=FAINT)
        anchor = "ra" if tick == DAY_TICKS else "ma"
        pen.text((x, foot + 8), f"{moment.astimezone():%Y-%m-%d}", fill=FAINT, font=font(13), anchor=anchor)


def _dot(pen: ImageDraw.ImageDraw, axes: _Axes, review: Review, state: DriftState | None) -> None:
    is_alarm = state is not None and state.since is not None and review.at >= state.since
    colour = ALARM if is_alarm else INK
    x, y = axes.x(review.at), axes.y(review.dice)
    fill = colour if review.is_corrected else BACKGROUND
    pen.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=fill, outline=colour, width=2)
