"""A picture of a correction: our prediction, the reader's object and what differs, slice by slice."""

from collections.abc import Mapping, Sequence

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from PIL import Image

from dicomnode.domain import LabelScore, ModelCard
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.pictures.overlay import Rgb, display_window
from dicomnode.imaging.pictures.preview import (
    GAP,
    MARGIN,
    PICTURE_WIDTH,
    Scene,
    Texts,
    colours_of,
    compose,
    scene_of,
    spread,
    tile_of,
    tile_size,
    view_note,
)

ROWS = 5
"""So many slices are shown at most, evenly spread over those that differ."""
HIGHEST_TILE = 300  # pixels
UNMAPPED_NUMBER = 255
_ADDED, _REMOVED, _RELABELLED = 1, 2, 3
_DIFFERENCE: dict[int, tuple[Rgb, str]] = {
    _ADDED: ((0, 158, 115), "added by the reader"),
    _REMOVED: ((213, 94, 0), "removed by the reader"),
    _RELABELLED: ((240, 228, 66), "given another label"),
}
_UNMAPPED: Rgb = (170, 170, 170)


def correction_picture(
    planes: NDArray[np.float32],
    stack: Stack,
    *,
    prediction: Mapping[str, BoolArray],
    correction: Mapping[str, BoolArray],
    unmapped: Mapping[str, BoolArray],
    card: ModelCard,
    texts: tuple[str, Sequence[str], Sequence[str]],
) -> Image.Image:
    """Draw prediction, correction and difference side by side for slices that differ.

    As `preview.montage`; the slices that differ are shown, else those with labels. Where masks overlap, the
    label that stands first in the card is on top.

    Parameters
    ----------
    planes
        (frame, row, column) in modality units, in the order of `stack.frames`.
    prediction, correction, unmapped
        Masks of the same shape by label; `unmapped` is shown in grey.
    texts
        Title, notes below it, and warnings below the legend: nothing that identifies the patient.
    """
    image = Volume(
        planes,
        stack.grid.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=stack.grid.frame_of_reference_uid,
    )
    ours = _numbers(prediction, {}, card, stack.shape)
    theirs = _numbers(correction, unmapped, card, stack.shape)
    scene = scene_of(
        image,
        image.with_array(((ours | theirs) > 0).astype(np.uint8)),
        window=display_window(stack, planes),
        as_taken=True,
    )
    differs = _difference(ours, theirs)
    columns = [scene.cut(image.with_array(one)) for one in (ours, theirs, differs)]
    title, notes, warnings = texts
    captions = "Left: our prediction. Middle: what came back. Right: what differs."
    return compose(
        _tiles(scene, columns, card),
        across=3,
        texts=Texts(
            title=title,
            notes=[captions, view_note(scene), *notes],
            legend=_legend(card, ours, theirs, differs),
            remarks=list(warnings),
        ),
    )


def score_line(score: LabelScore) -> str:
    """Say in one line how a label differs."""
    change = score.correction_voxels - score.prediction_voxels
    share = f" ({change / score.prediction_voxels:+.1%})" if score.prediction_voxels else ""
    slices = len(score.edited_slices)
    return (
        f"{score.label}: Dice {score.dice:.3f}, {slices} {'slice' if slices == 1 else 'slices'} edited, "
        f"{change:+d} voxels{share}"
    )


def _tiles(scene: Scene, columns: Sequence[NDArray[np.uint8]], card: ModelCard) -> list[Image.Image]:
    ours, theirs, differs = columns
    chosen = spread(differs if differs.any() else np.maximum(ours, theirs), ROWS)
    width, height = tile_size(scene, (PICTURE_WIDTH - 2 * MARGIN - 2 * GAP) // 3)
    shrink = min(1.0, HIGHEST_TILE / height)
    size = (round(width * shrink), round(height * shrink))
    labels = {**colours_of(card.segments), UNMAPPED_NUMBER: _UNMAPPED}
    difference = {number: rgb for number, (rgb, _) in _DIFFERENCE.items()}
    return [
        tile_of(scene, index, size, colours, numbers)
        for index in chosen
        for numbers, colours in ((ours, labels), (theirs, labels), (differs, difference))
    ]


def _numbers(
    masks: Mapping[str, BoolArray],
    unmapped: Mapping[str, BoolArray],
    card: ModelCard,
    shape: tuple[int, int, int],
) -> NDArray[np.uint8]:
    numbers = np.zeros(shape, np.uint8)
    for mask in unmapped.values():
        numbers[mask] = UNMAPPED_NUMBER
    for segment in reversed(card.segments):
        if segment.label in masks:
            numbers[masks[segment.label]] = segment.segment_number
    return numbers


def _difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    differs = np.zeros(ours.shape, np.uint8)
    differs[(ours == 0) & (theirs > 0)] = _ADDED
    differs[(ours > 0) & (theirs == 0)] = _REMOVED
    differs[(ours > 0) & (theirs > 0) & (ours != theirs)] = _RELABELLED
    return differs


def _legend(
    card: ModelCard, ours: NDArray[np.uint8], theirs: NDArray[np.uint8], differs: NDArray[np.uint8]
) -> list[tuple[Rgb, str]]:
    present = set(np.unique(ours).tolist()) | set(np.unique(theirs).tolist())
    shown = [(s.rgb, s.label) for s in card.segments if s.segment_number in present]
    grey = [(_UNMAPPED, "no label of the model")] if UNMAPPED_NUMBER in present else []
    kinds = set(np.unique(differs).tolist())
    return [*shown, *grey, *(entry for kind, entry in _DIFFERENCE.items() if kind in kinds)]
