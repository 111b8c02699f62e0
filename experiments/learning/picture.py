"""Pictures of the experiments: panels of curves with their spread, or of dots in columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL_WIDTH, HEIGHT = 620, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 60, 60
INK, FAINT, GRID, PAPER = (30, 34, 40), (120, 126, 136), (226, 229, 234), (255, 255, 255)
COLOURS = (
    (30, 34, 40),
    (0, 114, 178),
    (230, 120, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (160, 110, 40),
    (213, 60, 40),
    (150, 150, 60),
)
TICKS = 5
RADIUS = 4
ROW = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Values of several series over the same places along the x axis; a place has one value for each seed."""

    title: str
    x_title: str
    places: Sequence[str]
    series: Mapping[str, Sequence[Sequence[float]]]  # by name, for each place the values
    low: float
    high: float
    joined: bool = True  # by a line through the means


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    pen: ImageDraw.ImageDraw
    panel: Panel
    left: int
    right: int

    def x(self, place: float) -> float:
        """Give the pixel of a place."""
        return self.left + (place + 0.5) / max(len(self.panel.places), 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Give the pixel of a value; values outside lie at the border."""
        panel = self.panel
        inside = min(max(value, panel.low), panel.high)
        return HEIGHT - BOTTOM - (inside - panel.low) / (panel.high - panel.low) * (HEIGHT - TOP - BOTTOM)


def draw(title: str, panels: Sequence[Panel]) -> Image.Image:
    """Draw panels side by side: means over the seeds, with bars of one standard deviation."""
    picture = Image.new("RGB", (PANEL_WIDTH * len(panels), HEIGHT), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((LEFT, 10), title, fill=INK, font=_font(16))
    for index, panel in enumerate(panels):
        start = index * PANEL_WIDTH
        frame = _Frame(pen=pen, panel=panel, left=start + LEFT, right=start + PANEL_WIDTH - RIGHT)
        _axes(frame)
        for number, (name, values) in enumerate(panel.series.items()):
            _one_series(frame, number, name, values)
    return picture


def _axes(frame: _Frame) -> None:
    pen, panel = frame.pen, frame.panel
    pen.text((frame.left, 36), panel.title, fill=INK, font=_font(14))
    for tick in range(TICKS + 1):
        value = panel.low + (panel.high - panel.low) * tick / TICKS
        pen.line((frame.left, frame.y(value), frame.right, frame.y(value)), fill=GRID)
        pen.text((frame.left - 8, frame.y(value)), f"{value:.3g}", fill=FAINT, font=_font(12), anchor="rm")
    step = max(1, len(panel.places) // 10)
    for place, name in list(enumerate(panel.places))[::step]:
        spot = (frame.x(place), HEIGHT - BOTTOM + 6)
        pen.text(spot, name, fill=FAINT, font=_font(12), anchor="ma", align="center")
    middle = (frame.left + frame.right) / 2
    pen.text((middle, HEIGHT - 18), panel.x_title, fill=INK, font=_font(12), anchor="mm")


def _one_series(frame: _Frame, number: int, name: str, values: Sequence[Sequence[float]]) -> None:
    pen, colour = frame.pen, COLOURS[number % len(COLOURS)]
    aside = (number - (len(frame.panel.series) - 1) / 2) * (0.01 if frame.panel.joined else 0.09)
    points = []
    for place, own in enumerate(values):
        if not own:
            continue
        x, mean, spread = frame.x(place + aside), float(np.mean(own)), float(np.std(own))
        points.append((x, frame.y(mean)))
        pen.line((x, frame.y(mean - spread), x, frame.y(mean + spread)), fill=colour)
        pen.ellipse((x - RADIUS, frame.y(mean) - RADIUS, x + RADIUS, frame.y(mean) + RADIUS), fill=colour)
    if frame.panel.joined and len(points) > 1:
        pen.line(points, fill=colour, width=2)
    pen.text((frame.right + 14, TOP + ROW * number), name, fill=colour, font=_font(13))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
