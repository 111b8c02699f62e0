"""A picture of an evaluation: Dice, surface Dice and HD95 of every case, with box and mean, per label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dicomnode.imaging.pictures.preview import font
from dicomnode.ml.evaluation.measures import CaseMeasures, LabelMeasures
from dicomnode.ml.evaluation.summary import Estimate, LabelSummary

WIDTH = 1240
LEFT, GAP, RIGHT, TOP, BOTTOM = 210, 56, 16, 64, 34
ONE_SIDE_WIDTH = 56
"""Right of the axis of HD95: cases that have the label on one side only."""
FOOT = 44
ROW_HEIGHT, LOW_ROW_HEIGHT = 46, 30
MANY_LABELS = 24
LONGEST_NAME = 24
BOX_CASES = 5
"""With fewer cases than this a box would say more than is known."""
SMALLEST_MM = 0.5
MM_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
BACKGROUND = (255, 255, 255)
STRIPE = (246, 247, 249)
INK = (30, 34, 40)
FAINT = (120, 126, 136)
GRID = (226, 229, 234)
DOT = (120, 185, 225)
BOX = (0, 70, 120)
MEAN = (200, 40, 30)
RADIUS = 3
MANY_CASES = 20
"""With more of them the dots are smaller."""
LEGEND = (
    "Dots: cases.  Box: middle half of them, line at the median.  Red: mean with its 95 % interval.  "
    "Hollow: the label is on one side only, so there is no distance."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One measure: where its axis lies on the picture and what is drawn along it."""

    title: str
    left: int
    right: int
    ticks: tuple[float, ...]  # ascending; the first and the last are the ends of the axis
    is_logarithmic: bool
    value: Callable[[LabelMeasures], float | None]
    mean: Callable[[LabelSummary], Estimate]

    def x(self, value: float) -> int:
        """Give the place of a value; what lies outside is put at the end, the infinite beyond it."""
        if math.isinf(value):
            return self.right + ONE_SIDE_WIDTH * 3 // 5
        low, high = self.ticks[0], self.ticks[-1]
        inside = min(max(value, low), high)
        if self.is_logarithmic:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        return self.left + round((inside - low) / (high - low) * (self.right - self.left))


def draw(cases: Sequence[CaseMeasures], labels: Sequence[LabelSummary]) -> Image.Image:
    """Draw one row for each label."""
    rows = {label.label: _of_label(cases, label.label) for label in labels}
    height = LOW_ROW_HEIGHT if len(labels) > MANY_LABELS else ROW_HEIGHT
    foot = TOP + len(labels) * height
    picture = Image.new("RGB", (WIDTH, foot + BOTTOM + FOOT), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    panels = _panels([item for items in rows.values() for item in items])
    for number, label in enumerate(labels):
        top = TOP + number * height
        if number % 2 == 0:
            pen.rectangle((0, top, WIDTH, top + height - 1), fill=STRIPE)
        name = label.label if len(label.label) <= LONGEST_NAME else label.label[: LONGEST_NAME - 2] + ".."
        pen.text((LEFT - 16, top + height // 2), name, fill=INK, font=font(15), anchor="rm")
    for panel in panels:
        _axis(pen, panel, foot)
        for number, label in enumerate(labels):
            _row(pen, panel, rows[label.label], label, (TOP + number * height, height))
    words = f"{len(cases)} cases.  {LEGEND}"
    pen.text((LEFT - 186, foot + BOTTOM + 14), words, fill=FAINT, font=font(13))
    return picture


def _of_label(cases: Sequence[CaseMeasures], label: str) -> list[LabelMeasures]:
    return [item for case in cases for item in case.labels if item.label == label]


def _panels(items: Sequence[LabelMeasures]) -> tuple[_Panel, ...]:
    width = (WIDTH - LEFT - RIGHT - ONE_SIDE_WIDTH - 2 * GAP) // 3
    lefts = [LEFT + number * (width + GAP) for number in range(3)]
    farthest = max(
        (i.hd95_mm for i in items if i.hd95_mm is not None and math.isfinite(i.hd95_mm)), default=1.0
    )
    end = next((number for number, tick in enumerate(MM_TICKS) if tick >= farthest), len(MM_TICKS) - 1)
    tolerances = sorted({item.tolerance_mm for item in items})
    at = f" at {tolerances[0]:g} mm" if len(tolerances) == 1 else ""
    lowest = min((v for i in items for v in (i.dice, i.surface_dice) if v is not None), default=0.0)
    shares = _share_ticks(lowest)
    return (
        _Panel(
            title="Dice",
            left=lefts[0],
            right=lefts[0] + width,
            ticks=shares,
            is_logarithmic=False,
            value=lambda item: item.dice,
            mean=lambda label: label.dice,
        ),
        _Panel(
            title=f"Surface Dice (NSD){at}",
            left=lefts[1],
            right=lefts[1] + width,
            ticks=shares,
            is_logarithmic=False,
            value=lambda item: item.surface_dice,
            mean=lambda label: label.surface_dice,
        ),
        _Panel(
            title="HD95, mm",
            left=lefts[2],
            right=lefts[2] + width,
            ticks=MM_TICKS[: max(end, 3) + 1],
            is_logarithmic=True,
            value=lambda item: item.hd95_mm,
            mean=lambda label: label.hd95_mm,
        ),
    )


def _share_ticks(lowest: float) -> tuple[float, ...]:
    """Tenths from below the lowest value to 1, fifths where the way is long."""
    first = min(int(lowest * 10), 8)
    step = 1 if first >= 5 else 2
    return tuple(tenth / 10 for tenth in range(first - (10 - first) % step, 11, step))


def _axis(pen: ImageDraw.ImageDraw, panel: _Panel, foot: int) -> None:
    pen.text((panel.left, TOP - 34), panel.title, fill=INK, font=font(17))
    for tick in panel.ticks:
        x = panel.x(tick)
        pen.line((x, TOP, x, foot), fill=GRID)
        is_first = panel.is_logarithmic and tick == panel.ticks[0]
        pen.text((x, foot + 8), f"{'<' if is_first else ''}{tick:g}", fill=FAINT, font=font(13), anchor="ma")
    if panel.is_logarithmic:
        pen.text((panel.x(math.inf), foot + 8), "none", fill=FAINT, font=font(13), anchor="ma")


def _row(
    pen: ImageDraw.ImageDraw,
    panel: _Panel,
    items: Sequence[LabelMeasures],
    label: LabelSummary,
    place: tuple[int, int],
) -> None:
    """Draw one label along one axis; `place` is the top and the height of its row."""
    top, height = place
    middle, half = top + height * 2 // 5, height // 5
    values = [value for value in map(panel.value, items) if value is not None]
    radius = RADIUS if len(values) <= MANY_CASES else RADIUS - 1
    for number, value in enumerate(values):
        # A fixed spread over five lines keeps equal values apart.
        x, y = panel.x(value), middle + (number * 2 % 5 - 2) * half // 3
        fill = BACKGROUND if math.isinf(value) else DOT
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=DOT)
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) >= BOX_CASES:
        low, median, high = (panel.x(float(q)) for q in np.percentile(finite, (25, 50, 75)))
        pen.rectangle((low, middle - half, high, middle + half), outline=BOX)
        pen.line((median, middle - half, median, middle + half), fill=BOX, width=3)
    _mean(pen, panel, panel.mean(label), top + height * 4 // 5)


def _mean(pen: ImageDraw.ImageDraw, panel: _Panel, found: Estimate, y: int) -> None:
    if found.mean is None:
        return
    if found.lower is not None and found.upper is not None:
        pen.line((panel.x(found.lower), y, panel.x(found.upper), y), fill=MEAN, width=2)
    x = panel.x(found.mean)
    pen.polygon(((x - 4, y), (x, y - 4), (x + 4, y), (x, y + 4)), fill=MEAN)
