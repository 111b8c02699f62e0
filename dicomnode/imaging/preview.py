"""A picture of a segmentation over its image: slices through the labelled region, and a legend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dicomnode.domain import ModelCard, Segment

PICTURE_WIDTH = 1120
MINIMUM_WIDTH = 480
MARGIN = 16
GAP = 6
LINE_HEIGHT = 26
BACKGROUND = (18, 20, 24)
INK = (232, 234, 238)
FAINT = (150, 156, 166)
FILL_OPACITY = 0.28
OUTLINE_OPACITY = 0.95
AROUND_MM = 12.0
"""Tissue shown around the labelled region, on each side of the slice."""
THICK_SLICES = 1.5
"""Slices this much thicker than a pixel are shown in the plane in which they were taken."""


@dataclass(frozen=True, slots=True)
class _View:
    """A plane in radiological convention: the directions in which slice, row and column grow."""

    orientation: str
    left: str
    top: str
    note: str


_AXIAL = _View("FPL", "R", "A", "axial, from the head down; R = the patient's right")
_VIEWS = {
    "H": _AXIAL,
    "F": _AXIAL,
    "A": _View("PFL", "R", "H", "coronal, from front to back; R = the patient's right"),
    "P": _View("PFL", "R", "H", "coronal, from front to back; R = the patient's right"),
    "L": _View("LFP", "A", "H", "sagittal, from the patient's right to the left; A = front"),
    "R": _View("LFP", "A", "H", "sagittal, from the patient's right to the left; A = front"),
}


@dataclass(frozen=True, slots=True)
class _Scene:
    """Image and labels as shown: turned to the radiological view and cut to the region."""

    image: NDArray[np.float64]
    labels: NDArray[np.uint8]
    pixel_mm: tuple[float, float]
    window: tuple[float, float]
    view: _View


def montage(
    image: Volume,
    labels: Volume | NDArray[np.integer],
    card: ModelCard,
    *,
    title: str,
    columns: int = 5,
    rows: int = 3,
    width: int = PICTURE_WIDTH,
) -> Image.Image:
    """Draw slices through the labelled region with coloured outlines and a legend.

    Radiological convention: the patient's right on the left of the picture, front or head on top. The
    plane is axial, or the one in which thick slices were taken. Pixels have their true aspect ratio.
    Without any label the slices go through the whole image.

    Parameters
    ----------
    image
        Axes (slice, row, column), any orientation; left unchanged.
    labels
        Segment numbers on the same grid.
    title
        Shown on the picture as it stands: give it nothing that identifies the patient.
    columns, rows
        At most this many slices are shown, evenly spread.
    width
        Of the picture, in pixels.
    """
    numbers = np.asarray(labels.array if isinstance(labels, Volume) else labels, np.uint8)
    scene = _scene(image, image.with_array(numbers))
    shown = _spread(scene.labels, columns * rows)
    across = min(columns, len(shown))
    tile_size = _tile_size(scene, (width - 2 * MARGIN - (columns - 1) * GAP) // columns)
    tiles = [_tile(scene, index, tile_size, card.segments) for index in shown]
    legend = _legend(numbers, image, card)
    return _compose(tiles, across=across, title=title, legend=legend, view=scene.view)


def _scene(image: Volume, labels: Volume) -> _Scene:
    is_thick = image.spacing[0] > THICK_SLICES * max(image.spacing[1:])
    view = _VIEWS[image.get_closest_patient_orientation()[0].value] if is_thick else _AXIAL
    turned = image.to_patient_orientation(view.orientation)
    marks = np.asarray(labels.to_patient_orientation(view.orientation).array, np.uint8)
    values = np.asarray(turned.array, np.float64)
    box = _region(marks, turned.spacing)
    low, high = np.percentile(values, [1.0, 99.5])
    window = (float(low), float(max(high, low + 1e-6)))
    return _Scene(values[box], marks[box], (turned.spacing[1], turned.spacing[2]), window, view)


def _region(marks: NDArray[np.uint8], spacing: Sequence[float]) -> tuple[slice, slice, slice]:
    found = ndimage.find_objects((marks > 0).astype(np.uint8))
    if not found:
        return slice(None), slice(None), slice(None)
    _, row, column = found[0]
    grown = []
    for part, step, size in zip((row, column), spacing[1:], marks.shape[1:], strict=True):
        extra = round(AROUND_MM / step)
        grown.append(slice(max(part.start - extra, 0), min(part.stop + extra, size)))
    return slice(None), grown[0], grown[1]


def _spread(marks: NDArray[np.uint8], count: int) -> list[int]:
    labelled = np.flatnonzero(marks.any(axis=(1, 2)))
    candidates = labelled if labelled.size else np.arange(marks.shape[0])
    chosen = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    return [int(candidates[round(at)]) for at in chosen]


def _tile_size(scene: _Scene, width: int) -> tuple[int, int]:
    rows, columns = scene.image.shape[1:]
    height = width * (rows * scene.pixel_mm[0]) / (columns * scene.pixel_mm[1])
    return width, max(round(height), 1)


def _tile(scene: _Scene, index: int, size: tuple[int, int], segments: Sequence[Segment]) -> Image.Image:
    low, high = scene.window
    grey = np.clip((scene.image[index] - low) / (high - low), 0, 1) * 255
    base = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    canvas = np.asarray(base, np.float64)
    for segment in segments:
        mask = Image.fromarray((scene.labels[index] == segment.segment_number).astype(np.uint8) * 255)
        large = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
        if not large.any():
            continue
        inner = ndimage.binary_erosion(large, iterations=2)
        colour = np.array(segment.rgb, np.float64)
        canvas = _blend(canvas, inner, colour, FILL_OPACITY)
        canvas = _blend(canvas, large & ~inner, colour, OUTLINE_OPACITY)
    return Image.fromarray(canvas.astype(np.uint8))


def _blend(
    canvas: NDArray[np.float64], mask: NDArray[np.bool_], colour: NDArray[np.float64], opacity: float
) -> NDArray[np.float64]:
    weight = mask[..., None] * opacity
    return canvas * (1 - weight) + colour * weight


def _legend(
    numbers: NDArray[np.uint8], image: Volume, card: ModelCard
) -> list[tuple[tuple[int, int, int], str]]:
    voxel_ml = float(np.prod(image.spacing)) / 1000.0
    lines = []
    for segment in card.segments:
        count = int(np.count_nonzero(numbers == segment.segment_number))
        voxels = f"{count:,}".replace(",", " ")
        lines.append((segment.rgb, f"{segment.label}   {voxels} voxels   {count * voxel_ml:.2f} ml"))
    return lines


def _compose(
    tiles: Sequence[Image.Image],
    *,
    across: int,
    title: str,
    legend: Sequence[tuple[tuple[int, int, int], str]],
    view: _View,
) -> Image.Image:
    tile_width, tile_height = tiles[0].size
    width = 2 * MARGIN + max(across * (tile_width + GAP) - GAP, MINIMUM_WIDTH)
    down = -(-len(tiles) // across)
    top = MARGIN + 2 * LINE_HEIGHT
    bottom = top + down * (tile_height + GAP)
    picture = Image.new("RGB", (width, bottom + MARGIN + len(legend) * LINE_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 4), title, fill=INK, font=_font(22))
    draw.text(
        (MARGIN, MARGIN + LINE_HEIGHT), f"{view.note}; AI result, not verified", fill=FAINT, font=_font(14)
    )
    for index, tile in enumerate(tiles):
        left = MARGIN + (index % across) * (tile_width + GAP)
        upper = top + (index // across) * (tile_height + GAP)
        picture.paste(tile, (left, upper))
        for letter, at in (
            (view.left, (left + 5, upper + tile_height // 2 - 8)),
            (view.top, (left + tile_width // 2 - 4, upper + 2)),
        ):
            draw.text(at, letter, fill=INK, font=_font(13), stroke_width=2, stroke_fill=BACKGROUND)
    for number, (rgb, line) in enumerate(legend):
        upper = bottom + 8 + number * LINE_HEIGHT
        draw.rounded_rectangle((MARGIN, upper + 3, MARGIN + 16, upper + 19), radius=4, fill=rgb)
        draw.text((MARGIN + 26, upper + 1), line, fill=INK, font=_font(16))
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
