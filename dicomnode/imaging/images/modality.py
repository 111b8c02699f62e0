"""From stored values to modality units: slope and intercept, or a look-up table (PS3.3 C.11.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from dicomnode.errors import UnreadableInstanceError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.codestreams import Stored

_EXACT_IN_SINGLE = 2.0**24
_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 32768
"""Values rescaled at a time in double precision, so that they stay in the cache of the processor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModalityTransform:
    """What makes the stored values of one frame values in modality units."""

    slope: float = 1.0
    intercept: float = 0.0
    table: Dataset | None = None  # the data set with Modality LUT Sequence, which takes the place of both

    def apply(self, stored: Stored, out: NDArray[np.float32]) -> None:
        """Write the values of one frame, each rounded once, into `out` of the same shape (rows, columns)."""
        if self.table is not None:
            out[...] = apply_modality_lut(stored, self.table)
        elif self._is_exact_in_single(stored):
            self._apply_in_single(stored, out)
        else:
            self._apply_in_double(stored, out)

    def _is_exact_in_single(self, stored: Stored) -> bool:
        largest = abs(self.slope) * 2.0 ** (8 * stored.dtype.itemsize) + abs(self.intercept)
        return largest <= _EXACT_IN_SINGLE and self.slope.is_integer() and self.intercept.is_integer()

    def _apply_in_single(self, stored: Stored, out: NDArray[np.float32]) -> None:
        if self.slope == 1:
            np.add(stored, np.float32(self.intercept), out=out, dtype=np.float32, casting="unsafe")
            return
        np.multiply(stored, np.float32(self.slope), out=out, dtype=np.float32, casting="unsafe")
        if self.intercept:
            np.add(out, np.float32(self.intercept), out=out)

    def _apply_in_double(self, stored: Stored, out: NDArray[np.float32]) -> None:
        rows = max(1, _BLOCK // max(1, stored.shape[1]))
        for at in range(0, len(stored), rows):
            values = np.multiply(stored[at : at + rows], self.slope, dtype=np.float64)
            np.add(values, self.intercept, out=values)
            out[at : at + rows] = values


def read_transform(ds: Dataset, groups: Sequence[Dataset]) -> ModalityTransform:
    """Read the transformation of one frame.

    Parameters
    ----------
    ds
        The instance.
    groups
        The functional groups that hold for the frame, its own before the shared ones; none for classic
        images. Pixel Value Transformation Sequence there (PS3.3 C.7.6.16.2.9) comes before the instance.

    Raises
    ------
    UnreadableInstanceError
        Slope or intercept is no finite number, the slope is 0, or values do not fit into single precision.
    """
    for group in groups:
        for item in attributes.items(group, "PixelValueTransformationSequence"):
            return _linear(item)
    if attributes.items(ds, "ModalityLUTSequence"):
        return ModalityTransform(table=ds)
    return _linear(ds)


def _linear(ds: Dataset) -> ModalityTransform:
    slope, intercept = _number(ds, "RescaleSlope", absent=1.0), _number(ds, "RescaleIntercept", absent=0.0)
    if slope == 0:
        raise UnreadableInstanceError("Rescale Slope is 0")
    if abs(slope) * 2.0**32 + abs(intercept) > _LARGEST:
        raise UnreadableInstanceError(f"Rescale Slope {slope} or Intercept {intercept} is out of range")
    return ModalityTransform(slope=slope, intercept=intercept)


def _number(ds: Dataset, keyword: str, *, absent: float) -> float:
    if not attributes.has_value(ds, keyword):
        return absent
    values = attributes.numbers(ds, keyword)
    if values is None or values.size != 1:
        raise UnreadableInstanceError(f"{keyword} does not hold one finite number")
    return float(values[0])
