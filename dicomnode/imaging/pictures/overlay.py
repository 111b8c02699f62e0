"""Labels in colour over grey images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain import Segment
from dicomnode.imaging import attributes
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.stacks import Stack

FILL_OPACITY = 0.24
OUTLINE_OPACITY = 0.95
DARKEST, BRIGHTEST = 1.0, 99.5  # percentiles shown black and white where no window is named
LEAST_FILLED, LEAST_SHOWN = 0.3, 0.02
"""Parts of a window that the values must fill, and of the values that it must show; else it is a mistake."""
_SAMPLES = 1 << 20

Window = tuple[float, float]
"""Modality values shown black and white; the first is the higher one where an image is to be inverted."""
Rgb = tuple[int, int, int]


def display_window(stack: Stack, planes: NDArray[np.float32]) -> Window:
    """Give the window that the middle plane names, or one that shows most of what is there.

    One window for all planes, so that they can be compared. That of the image (PS3.3 C.11.2) is not taken
    where it shows next to nothing: the values lie outside, or in a small part of it. MONOCHROME1 is
    inverted.
    """
    frame = stack.frames[len(stack.frames) // 2]
    spread = spread_window(planes)
    named = _named_window(frame)
    window = named if named and _shows(named, spread) else spread
    inverted = attributes.text(frame.ds, "PhotometricInterpretation") == "MONOCHROME1"
    return window[::-1] if inverted else window


def spread_window(values: NDArray[np.generic]) -> Window:
    """Give the window from the 1st to the 99.5th percentile of a sample of the values."""
    step = max(1, round((values.size / _SAMPLES) ** (1 / values.ndim)))
    sample = np.asarray(values[(slice(None, None, step),) * values.ndim], np.float64)
    low, high = np.percentile(sample, [DARKEST, BRIGHTEST])
    return float(low), float(max(high, low + 1e-6))


def to_grey(values: NDArray[np.generic], window: Window) -> NDArray[np.uint8]:
    """Give the grey levels 0 to 255 of modality values."""
    low, high = window
    levels = (np.asarray(values, np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.asarray(np.clip(levels, 0, 255).astype(np.uint8))


def paint(
    grey: NDArray[np.uint8], labels: NDArray[np.uint8], segments: Sequence[Segment]
) -> NDArray[np.uint8]:
    """Fill labels with a breath of their colour and draw their outline, one pixel wide.

    Parameters
    ----------
    grey, labels
        (row, column); labels are segment numbers.

    Returns
    -------
        RGB, (row, column, 3).
    """
    colours = np.zeros((256, 3), np.float32)
    for segment in segments:
        colours[segment.segment_number] = segment.rgb
    painted = np.repeat(grey[..., None], 3, axis=2)
    is_labelled = labels > 0
    under = painted[is_labelled].astype(np.float32)
    opacity = np.where(_outline(labels)[is_labelled], np.float32(OUTLINE_OPACITY), np.float32(FILL_OPACITY))
    mixed = under + opacity[:, None] * (colours[labels[is_labelled]] - under)
    painted[is_labelled] = np.rint(mixed).astype(np.uint8)
    return painted


def _named_window(frame: SourceFrame) -> Window | None:
    centre = frame.header.number("FrameVOILUTSequence", "WindowCenter")
    width = frame.header.number("FrameVOILUTSequence", "WindowWidth")
    if centre is None or width is None or width <= 1:
        return None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2  # C.11.2.1.2.1


def _shows(window: Window, spread: Window) -> bool:
    """Answer whether the values fill a fair part of a window, and the window a part of the values."""
    common = min(window[1], spread[1]) - max(window[0], spread[0])
    return common >= LEAST_FILLED * (window[1] - window[0]) and common >= LEAST_SHOWN * (
        spread[1] - spread[0]
    )


def _outline(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find the pixels of a label that have a neighbour of another one, or none, at one of four sides."""
    padded = np.pad(labels, 1)
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    differs = np.zeros(labels.shape, np.bool_)
    for neighbour in neighbours:
        differs |= neighbour != labels
    return differs & (labels > 0)
