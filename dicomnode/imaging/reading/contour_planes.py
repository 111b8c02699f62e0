"""Where contours in patient space lie on the planes of a stack."""

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.seg_planes import PlaneIndex


class ContourPlanes:
    """The planes of a stack, as places for contours.

    A contour is on a plane if all its points are, within the tolerance of `PlaneIndex`: a tenth of the way
    to the next plane. Between planes, or oblique to them, it is on none.
    """

    def __init__(self, stack: Stack) -> None:
        self._frames = stack.frames
        self._planes = PlaneIndex(stack)
        self._to_pixels: dict[int, FloatArray] = {}
        self._instances = {frame.sop_instance_uid for frame in stack.frames}

    def at(self, points: FloatArray) -> int | None:
        """Find the plane that points (points, 3), LPS in millimetres, lie on."""
        away = points.mean(axis=0) - self._planes.positions
        index = int(np.abs(away @ self._planes.normal).argmin())
        frame = self._frames[index]
        normal = np.cross(frame.row_cosines, frame.column_cosines)
        heights = np.abs((points - frame.position_mm) @ normal)
        return index if float(heights.max()) <= self._planes.tolerances[index] else None

    def conflict(self, index: int, references: Sequence[Dataset]) -> str:
        """Compare the plane that a contour lies on with the images that it names; "" where they agree."""
        if not references or index in self._planes.named(references):
            return ""
        held = [one for one in references if self._planes.holds(one)]
        if not held:
            return "other_images"
        return "position_conflict" if self._planes.named(held) else ""

    def names(self, references: Sequence[Dataset]) -> bool:
        """Answer whether one of some images is of the stack."""
        return any(attributes.text(one, "ReferencedSOPInstanceUID") in self._instances for one in references)

    def ring(self, points: FloatArray, index: int) -> FloatArray:
        """Bring points to (row, column) of a plane, in pixels (PS3.3 C.7.6.2.1.1)."""
        frame = self._frames[index]
        if index not in self._to_pixels:
            steps = np.stack([frame.column_cosines, frame.row_cosines]) * frame.pixel_spacing_mm[:, None]
            self._to_pixels[index] = np.asarray(np.linalg.pinv(steps), np.float64)
        return np.asarray((points - frame.position_mm) @ self._to_pixels[index], np.float64)
