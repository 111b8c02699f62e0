"""A picture of a segmentation over its image: slices through the labelled region, and a legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dicomnode.domain import ModelCard, Segment
from dicomnode.imaging.pictures.overlay import (
    FILL_OPACITY,
    OUTLINE_OPACITY,
    Rgb,
    Window,
    display_window,
    spread_window,
    to_grey,
)
from dicomnode.imaging.results.findings import Findings

PICTURE_WIDTH = 1120
MINIMUM_WIDTH = 560
MARGIN = 16
GAP = 6
LINE_HEIGHT = 26
TITLE_HEIGHT = 34
NOTE_HEIGHT = 20
LEGEND_COLUMN_WIDTH = 340
FEW_LABELS = 6
"""So many labels are listed below each other, more of them side by side."""
BACKGROUND = (18, 20, 24)
INK = (232, 234, 238)
FAINT = (150, 156, 166)
WARNING = (240, 190, 90)
AROUND_MM = 12.0
"""Tissue shown around the labelled region, on each side of the slice."""
THICK_SLICES = 1.5
"""Slices this much thicker than a pixel are shown in the plane in which they were taken."""
NOT_VERIFIED = "AI result, not verified"
NOTHING_FOUND = "Nothing was found: the model marked no pixel of this series."


@dataclass(frozen=True, slots=True)
class View:
    """A plane in radiological convention: the directions in which slice, row and column grow."""

    orientation: str
    left: str
    top: str
    note: str


_AXIAL = View("FPL", "R", "A", "Axial, from the head down; R = the patient's right")
_VIEWS = {
    "H": _AXIAL,
    "F": _AXIAL,
    "A": View("PFL", "R", "H", "Coronal, from front to back; R = the patient's right"),
    "P": View("PFL", "R", "H", "Coronal, from front to back; R = the patient's right"),
    "L": View("LFP", "A", "H", "Sagittal, from the patient's right to the left; A = front"),
    "R": View("LFP", "A", "H", "Sagittal, from the patient's right to the left; A = front"),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Image and labels as shown: turned to the radiological view and cut to the region."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    pixel_mm: tuple[float, float]
    window: Window
    view: View
    box: tuple[slice, slice, slice]  # of the turned image that is shown

    def cut(self, labels: Volume) -> NDArray[np.uint8]:
        """Turn and cut other labels on the grid of the image in the same way."""
        turned = labels.to_patient_orientation(self.view.orientation)
        return np.asarray(turned.array, np.uint8)[self.box]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """At most so many slices, evenly spread, in a picture so many pixels wide."""

    columns: int
    rows: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is written around the slices."""

    title: str
    notes: Sequence[str]  # below the title
    legend: Sequence[tuple[Rgb, str]]
    remarks: Sequence[str] = ()  # below the legend


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
    scene = scene_of(image, image.with_array(numbers), window=spread_window(np.asarray(image.array)))
    texts = Texts(title=title, notes=[view_note(scene)], legend=_legend(numbers, image, card))
    return _draw(scene, card.segments, texts, _Layout(columns=columns, rows=rows, width=width))


def findings_montage(findings: Findings, *, title: str, notes: Sequence[str] = ()) -> Image.Image:
    """Draw what was found on the received planes, with volumes and the remarks on the series.

    As `montage`. Planes that form no regular grid are shown as they were taken. The image's own window is
    used where it names one. Where nothing was found the picture says so over the middle slice.

    Parameters
    ----------
    title, notes
        Shown on the picture as they stand: give them nothing that identifies the patient.
    """
    stack = findings.stack
    image = Volume(
        findings.planes,
        stack.grid.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=stack.grid.frame_of_reference_uid,
    )
    window = display_window(stack, findings.planes)
    labels = image.with_array(findings.labels)
    scene = scene_of(image, labels, window=window, as_taken=not stack.is_regular)
    texts = Texts(
        title=title,
        notes=[view_note(scene), *notes],
        legend=[(one.segment.rgb, _measured(one.segment.label, one.millilitres)) for one in findings.found],
        remarks=[*_absent(findings), *(f"{remark[:1].upper()}{remark[1:]}" for remark in stack.remarks)],
    )
    segments = findings.card.segments
    if not findings.found:
        return _draw_nothing(scene, segments, texts)
    return _draw(scene, segments, texts, _Layout(columns=5, rows=3, width=PICTURE_WIDTH))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Give the font that Pillow brings along, laid out without the libraries of the system."""
    found = ImageFont.load_default(size)
    if isinstance(found, ImageFont.FreeTypeFont):
        return found.font_variant(layout_engine=ImageFont.Layout.BASIC)
    return found


def scene_of(image: Volume, labels: Volume, *, window: Window, as_taken: bool = False) -> Scene:
    is_thick = image.spacing[0] > THICK_SLICES * max(image.spacing[1:])
    taken = _VIEWS[image.get_closest_patient_orientation()[0].value]
    view = taken if is_thick or as_taken else _AXIAL
    turned = image.to_patient_orientation(view.orientation)
    marks = np.asarray(labels.to_patient_orientation(view.orientation).array, np.uint8)
    box = _region(marks, turned.spacing)
    values = np.asarray(turned.array)[box]
    return Scene(values, marks[box], (turned.spacing[1], turned.spacing[2]), window, view, box)


def _region(marks: NDArray[np.uint8], spacing: Sequence[float]) -> tuple[slice, slice, slice]:
    rows, columns = (np.flatnonzero(marks.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not rows.size:
        return slice(None), slice(None), slice(None)
    grown = []
    for found, step, size in zip((rows, columns), spacing[1:], marks.shape[1:], strict=True):
        extra = round(AROUND_MM / step)
        grown.append(slice(max(int(found[0]) - extra, 0), min(int(found[-1]) + 1 + extra, size)))
    return slice(None), grown[0], grown[1]


def view_note(scene: Scene) -> str:
    return f"{scene.view.note}; {NOT_VERIFIED}"


def _legend(numbers: NDArray[np.uint8], image: Volume, card: ModelCard) -> list[tuple[Rgb, str]]:
    voxel_ml = float(np.prod(image.spacing)) / 1000.0
    counts = np.bincount(numbers.reshape(-1), minlength=256)
    lines = []
    for segment in card.segments:
        count = int(counts[segment.segment_number])
        voxels = f"{count:,}".replace(",", " ")
        lines.append((segment.rgb, f"{segment.label}   {voxels} voxels   {count * voxel_ml:.2f} ml"))
    return lines


def _measured(label: str, millilitres: float) -> str:
    return f"{label}   {millilitres:.{2 if millilitres < 100 else 0}f} ml"


def _absent(findings: Findings) -> list[str]:
    labels = [one.segment.label for one in findings.measures if not one.voxels]
    return [f"Looked for and not found: {', '.join(labels)}"] if labels else []


def _draw(scene: Scene, segments: Sequence[Segment], texts: Texts, layout: _Layout) -> Image.Image:
    shown = spread(scene.labels, layout.columns * layout.rows)
    size = tile_size(scene, (layout.width - 2 * MARGIN - (layout.columns - 1) * GAP) // layout.columns)
    colours = colours_of(segments)
    tiles = [tile_of(scene, index, size, colours, scene.labels) for index in shown]
    return compose(tiles, across=min(layout.columns, len(shown)), texts=texts)


def _draw_nothing(scene: Scene, segments: Sequence[Segment], texts: Texts) -> Image.Image:
    size = tile_size(scene, MINIMUM_WIDTH - 2 * MARGIN)
    tile = tile_of(scene, len(scene.image) // 2, size, colours_of(segments), scene.labels)
    draw = ImageDraw.Draw(tile)
    lines = _wrapped(NOTHING_FOUND, 22, tile.width - 2 * MARGIN)
    top = tile.height - MARGIN - 28 * len(lines)
    for number, line in enumerate(lines):
        at = (MARGIN, top + 28 * number)
        draw.text(at, line, fill=WARNING, font=font(22), stroke_width=3, stroke_fill=BACKGROUND)
    return compose([tile], across=1, texts=texts)


def colours_of(segments: Sequence[Segment]) -> dict[int, Rgb]:
    """Colour of each segment number."""
    return {segment.segment_number: segment.rgb for segment in segments}


def spread(marks: NDArray[np.uint8], count: int) -> list[int]:
    labelled = np.flatnonzero(marks.any(axis=(1, 2)))
    candidates = labelled if labelled.size else np.arange(marks.shape[0])
    chosen = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    return [int(candidates[round(at)]) for at in chosen]


def tile_size(scene: Scene, width: int) -> tuple[int, int]:
    rows, columns = scene.image.shape[1:]
    height = width * (rows * scene.pixel_mm[0]) / (columns * scene.pixel_mm[1])
    return width, max(round(height), 1)


def tile_of(
    scene: Scene, index: int, size: tuple[int, int], colours: Mapping[int, Rgb], labels: NDArray[np.uint8]
) -> Image.Image:
    """Draw one slice with labels (slice, row, column) over it, as the scene is cut."""
    grey = Image.fromarray(to_grey(scene.image[index], scene.window))
    canvas = np.asarray(grey.resize(size, Image.Resampling.BICUBIC).convert("RGB"), np.float32)
    present = set(np.unique(labels[index]).tolist())
    for number, rgb in colours.items():
        if number not in present:
            continue
        mask = Image.fromarray((labels[index] == number).astype(np.uint8) * 255)
        large = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
        inner = ndimage.binary_erosion(large, iterations=2)
        canvas = _blend(canvas, inner, rgb, FILL_OPACITY)
        canvas = _blend(canvas, large & ~inner, rgb, OUTLINE_OPACITY)
    tile = Image.fromarray(canvas.astype(np.uint8))
    _letter(tile, scene.view)
    return tile


def _blend(
    canvas: NDArray[np.float32], mask: NDArray[np.bool_], colour: Rgb, opacity: float
) -> NDArray[np.float32]:
    weight = mask[..., None] * np.float32(opacity)
    return np.asarray(canvas * (1 - weight) + np.array(colour, np.float32) * weight)


def _letter(tile: Image.Image, view: View) -> None:
    draw = ImageDraw.Draw(tile)
    for letter, at in (
        (view.left, (5, tile.height // 2 - 8)),
        (view.top, (tile.width // 2 - 4, 2)),
    ):
        draw.text(at, letter, fill=INK, font=font(13), stroke_width=2, stroke_fill=BACKGROUND)


def compose(tiles: Sequence[Image.Image], *, across: int, texts: Texts) -> Image.Image:
    tile_width, tile_height = tiles[0].size
    inner = max(across * (tile_width + GAP) - GAP, MINIMUM_WIDTH - 2 * MARGIN)
    title = _wrapped(texts.title, 22, inner)
    notes = [line for note in texts.notes for line in _wrapped(note, 14, inner)]
    remarks = [line for remark in texts.remarks for line in _wrapped(remark, 14, inner)]
    legend_columns = 1 if len(texts.legend) <= FEW_LABELS else max(1, inner // LEGEND_COLUMN_WIDTH)
    legend_rows = -(-len(texts.legend) // legend_columns)
    top = MARGIN // 2 + len(title) * TITLE_HEIGHT + len(notes) * NOTE_HEIGHT + GAP
    bottom = top + -(-len(tiles) // across) * (tile_height + GAP) + GAP
    remarks_top = bottom + legend_rows * LINE_HEIGHT + (GAP if legend_rows else 0)
    size = (inner + 2 * MARGIN, remarks_top + len(remarks) * NOTE_HEIGHT + MARGIN // 2)
    picture = Image.new("RGB", size, BACKGROUND)
    for index, tile in enumerate(tiles):
        left = MARGIN + (index % across) * (tile_width + GAP)
        picture.paste(tile, (left, top + (index // across) * (tile_height + GAP)))
    draw = ImageDraw.Draw(picture)
    _write(draw, title, MARGIN // 2, TITLE_HEIGHT, (INK, 22))
    _write(draw, notes, MARGIN // 2 + len(title) * TITLE_HEIGHT, NOTE_HEIGHT, (FAINT, 14))
    _write(draw, remarks, remarks_top, NOTE_HEIGHT, (WARNING, 14))
    for number, (rgb, line) in enumerate(texts.legend):
        left = MARGIN + (number // legend_rows) * (inner // legend_columns)
        upper = bottom + (number % legend_rows) * LINE_HEIGHT
        draw.rounded_rectangle((left, upper + 3, left + 16, upper + 19), radius=4, fill=rgb)
        draw.text((left + 26, upper + 1), line, fill=INK, font=font(16))
    return picture


def _write(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], top: int, line_height: int, style: tuple[Rgb, int]
) -> None:
    for number, line in enumerate(lines):
        draw.text((MARGIN, top + number * line_height), line, fill=style[0], font=font(style[1]))


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Break a text into lines that are not wider than so many pixels."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
