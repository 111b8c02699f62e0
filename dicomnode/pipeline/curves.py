"""A picture of a training: the losses above, the Dice of each label below."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from dicomnode.imaging.pictures.preview import font
from dicomnode.ml.training.history import EpochRecord

WIDTH, PANEL_HEIGHT = 1120, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 260, 40, 40
LONGEST_NAME = 28
BACKGROUND = (255, 255, 255)
INK = (30, 34, 40)
FAINT = (120, 126, 136)
GRID = (226, 229, 234)
COLOURS = ((0, 114, 178), (230, 120, 0), (0, 140, 100), (200, 40, 30), (150, 90, 170), (110, 110, 110))
MAXIMUM_CURVES = 12
"""With more labels only the mean is drawn."""
GRID_LINES = 5
EPOCH_TICKS = 8

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """One figure over the epochs; None where an epoch does not have it."""

    name: str
    values: tuple[float | None, ...]
    colour: Colour
    width: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Where an epoch and a value lie on the picture."""

    top: int
    epochs: int
    low: float
    high: float

    def at(self, index: int, value: float) -> tuple[int, int]:
        """Give the place of the value of an epoch, counted from 0."""
        across = index / max(self.epochs - 1, 1)
        up = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return LEFT + round(across * (WIDTH - LEFT - RIGHT)), self.top + TOP + round((1 - up) * _HEIGHT)


_HEIGHT = PANEL_HEIGHT - TOP - BOTTOM


OF_VALIDATION = "Dice in patches of the validation cases"
OF_TRAINING = "Dice in the samples that were trained on"


def draw(name: str, history: Sequence[EpochRecord], *, dice_title: str = OF_VALIDATION) -> Image.Image:
    """Draw what happened up to now; at least one epoch."""
    picture = Image.new("RGB", (WIDTH, 2 * PANEL_HEIGHT), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    _panel(pen, 0, f"{name}: loss", _losses(history))
    _panel(pen, PANEL_HEIGHT, dice_title, _dice(history), low=0.0, high=1.0)
    return picture


def as_png(picture: Image.Image) -> bytes:
    """Encode a picture."""
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _losses(history: Sequence[EpochRecord]) -> list[_Curve]:
    training = tuple(record.loss for record in history)
    validation = tuple(record.validation_loss for record in history)
    curves = [
        _Curve(name="training", values=training, colour=COLOURS[0]),
        _Curve(name="validation", values=validation, colour=COLOURS[1]),
    ]
    return [curve for curve in curves if any(value is not None for value in curve.values)]


def _dice(history: Sequence[EpochRecord]) -> list[_Curve]:
    labels = list(history[-1].dice)
    curves = [
        _Curve(
            name=label,
            values=tuple(record.dice.get(label) for record in history),
            colour=COLOURS[number % len(COLOURS)],
        )
        for number, label in enumerate(labels if len(labels) <= MAXIMUM_CURVES else [])
    ]
    mean = _Curve(name="mean", values=tuple(record.mean_dice for record in history), colour=INK, width=3)
    return [*curves, mean]


def _panel(
    pen: ImageDraw.ImageDraw,
    top: int,
    title: str,
    curves: Sequence[_Curve],
    *,
    low: float | None = None,
    high: float | None = None,
) -> None:
    known = [value for curve in curves for value in curve.values if value is not None]
    pen.text((LEFT, top + 12), title, fill=INK, font=font(18))
    if not known:
        pen.text((LEFT, top + TOP), "There is nothing to show.", fill=FAINT, font=font(13))
        return
    least, most = min(known), max(known)
    margin = max(most - least, 1e-3) * 0.05
    axes = _Axes(
        top=top,
        epochs=len(curves[0].values),
        low=least - margin if low is None else low,
        high=most + margin if high is None else high,
    )
    _grid(pen, axes)
    for number, curve in enumerate(curves):
        _draw_curve(pen, axes, curve, number)


def _grid(pen: ImageDraw.ImageDraw, axes: _Axes) -> None:
    for line in range(GRID_LINES + 1):
        value = axes.low + (axes.high - axes.low) * line / GRID_LINES
        _, y = axes.at(0, value)
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        pen.text((LEFT - 8, y), f"{value:.2f}", fill=FAINT, font=font(13), anchor="rm")
    step = max(1, -(-axes.epochs // EPOCH_TICKS))
    for index in range(0, axes.epochs, step):
        x, y = axes.at(index, axes.low)
        pen.line((x, y, x, y + 4), fill=FAINT)
        pen.text((x, y + 8), f"{index + 1}", fill=FAINT, font=font(13), anchor="ma")
    _, foot = axes.at(0, axes.low)
    pen.text((WIDTH - RIGHT + 16, foot), "epoch", fill=FAINT, font=font(13), anchor="lm")


def _draw_curve(pen: ImageDraw.ImageDraw, axes: _Axes, curve: _Curve, number: int) -> None:
    points = [axes.at(index, value) for index, value in enumerate(curve.values) if value is not None]
    if len(points) > 1:
        pen.line(points, fill=curve.colour, width=curve.width, joint="curve")
    for x, y in points[-1:]:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=curve.colour)
    last = next((value for value in reversed(curve.values) if value is not None), None)
    if last is not None:
        at = (WIDTH - RIGHT + 16, axes.top + TOP + 20 * number)
        pen.text(at, f"{last:.3f}  {curve.name[:LONGEST_NAME]}", fill=curve.colour, font=font(13))
