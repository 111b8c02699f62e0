"""The picture of `default_model.py`: Dice and HD95 of every hold-out case, both contenders side by side."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicomnode.ml.evaluation.measures import CaseMeasures, LabelMeasures

WIDTH, HEIGHT = 1120, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 60
GAP = 70
BACKGROUND, INK, FAINT, GRID = (255, 255, 255), (30, 34, 40), (120, 126, 136), (226, 229, 234)
COLOURS: Mapping[str, tuple[int, int, int]] = {"ours": (0, 114, 178), "nnunet": (230, 120, 0)}
NAMES: Mapping[str, str] = {"ours": "dicomnode", "nnunet": "nnU-Net"}
RADIUS = 3
TICKS = 5
LARGEST_MM = 6.0


def draw(cases: Mapping[str, Sequence[CaseMeasures]], *, minutes: float) -> Image.Image:
    """Draw one panel for each figure: dots are cases, lines are means."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    count = len(next(iter(cases.values())))
    title = f"Hippocampus, {count} hold-out cases, {minutes:g} minutes of training each. Lines: means."
    pen.text((LEFT, 10), title, fill=INK, font=_font(16))
    half = (WIDTH - LEFT - RIGHT - GAP) // 2
    dice: Callable[[LabelMeasures], float | None] = lambda one: one.dice  # noqa: E731 - typed once
    _panel(pen, LEFT, LEFT + half, "Dice", cases, dice, low=0.6, high=1.0)
    _panel(
        pen,
        LEFT + half + GAP,
        WIDTH - RIGHT,
        "HD95 (mm)",
        cases,
        lambda one: one.hd95_mm,
        low=0.0,
        high=LARGEST_MM,
    )
    return picture


def _panel(
    pen: ImageDraw.ImageDraw,
    left: int,
    right: int,
    title: str,
    cases: Mapping[str, Sequence[CaseMeasures]],
    value: Callable[[LabelMeasures], float | None],
    *,
    low: float,
    high: float,
) -> None:
    pen.text((left, 36), title, fill=INK, font=_font(14))

    def y_of(number: float) -> int:
        inside = min(max(number, low), high)
        return HEIGHT - BOTTOM - round((inside - low) / (high - low) * (HEIGHT - TOP - BOTTOM))

    for tick in range(TICKS + 1):
        number = low + (high - low) * tick / TICKS
        pen.line((left, y_of(number), right, y_of(number)), fill=GRID)
        pen.text((left - 8, y_of(number)), f"{number:.2g}", fill=FAINT, font=_font(12), anchor="rm")
    labels = [one.label for one in next(iter(cases.values()))[0].labels]
    columns = [(label, name) for label in labels for name in cases]
    width = (right - left) / len(columns)
    for number, (label, name) in enumerate(columns):
        found = [value(one) for case in cases[name] for one in case.labels if one.label == label]
        values = [one for one in found if one is not None and np.isfinite(one)]
        middle = left + (number + 0.5) * width
        for index, one in enumerate(values):
            x = middle + ((index * 37) % 41 - 20) / 41 * width * 0.6
            pen.ellipse((x - RADIUS, y_of(one) - RADIUS, x + RADIUS, y_of(one) + RADIUS), fill=COLOURS[name])
        mean = float(np.mean(values)) if values else low
        pen.line((middle - 0.4 * width, y_of(mean), middle + 0.4 * width, y_of(mean)), fill=INK, width=3)
        words = f"{label}\n{NAMES[name]}\n{mean:.3f}"
        pen.text(
            (middle, HEIGHT - BOTTOM + 6),
            words,
            fill=COLOURS[name],
            font=_font(12),
            anchor="ma",
            align="center",
        )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
