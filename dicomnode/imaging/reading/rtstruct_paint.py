"""One structure after the other of a received RT Structure Set, painted onto the planes of its stack."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.contour_masks import effort, fill_plane
from dicomnode.imaging.reading.contour_planes import ContourPlanes
from dicomnode.imaging.reading.rtstruct_contours import Contour, Limits, read_contours
from dicomnode.imaging.reading.rtstruct_rois import Roi
from dicomnode.imaging.reading.seg_canvas import Canvas, is_sparse

OUTSIDE = 1.0
"""Pixels that a contour may go beyond the centres of the border pixels: it may follow their outer edge."""
_SPACE = frozenset({"other_frame_of_reference", "frame_of_reference_missing"})


@dataclass(slots=True, kw_only=True)
class Painted:
    """What became of one structure, while it is painted and after.

    Attributes
    ----------
    mask
        (frame, row, column); None where no voxel was painted.
    planes
        Indices of the planes that were painted on.
    flags
        What was met: see `rtstruct_defects.DEFECTS`.
    contours, closed, used
        Contours of any kind, those that are closed, and those of them that lie on a plane.
    """

    roi: Roi
    flags: set[str]
    mask: BoolArray | None = None
    planes: set[int] = field(default_factory=set)
    contours: int = 0
    closed: int = 0
    used: int = 0


class Painter:
    """Paints the structures of one object, within the limits of one object."""

    def __init__(self, *, name: str, stack: Stack) -> None:
        self._name = name
        self._size = stack.frames[0].size
        self._planes = ContourPlanes(stack)
        self._limits = Limits(name)
        self._canvas = Canvas(stack.shape, name=name)

    def paint(self, roi: Roi, *, space: str) -> Painted:
        """Fill the contours of a structure, plane by plane, by the rules of `contour_masks`.

        Parameters
        ----------
        space
            Flag of its frame of reference; of a structure in another one nothing is painted.

        Raises
        ------
        CorrectionError
            A contour cannot be read, or there is more than one object may have.
        """
        painted = Painted(roi=roi, flags=set(roi.flags))
        rings: dict[int, list[FloatArray]] = defaultdict(list)
        for item in roi.contour_items:
            name = f"{self._name}, ROI {roi.number}"
            for contour in read_contours(item, name=name, limits=self._limits):
                painted.contours += 1
                painted.flags |= contour.flags | ({space} & _SPACE)
                if len(contour.points) and space != "other_frame_of_reference":
                    self._place(contour, painted, rings)
        self._fill(painted, rings)
        return painted

    def _place(self, contour: Contour, painted: Painted, rings: dict[int, list[FloatArray]]) -> None:
        painted.closed += 1
        index = self._planes.at(contour.points)
        if index is None:
            painted.flags.add("contours_off_planes")
            return
        painted.used += 1
        painted.flags |= {self._planes.conflict(index, contour.references)} - {""}
        ring = self._planes.ring(contour.points, index)
        if (ring < -OUTSIDE).any() or (ring > np.array(self._size) - 1 + OUTSIDE).any():
            painted.flags.add("contours_outside")
        self._limits.add(effort=effort(ring, self._size))
        rings[index].append(ring)

    def _fill(self, painted: Painted, rings: dict[int, list[FloatArray]]) -> None:
        for index, on_plane in rings.items():
            filled = fill_plane(on_plane, self._size)
            self._canvas.add(painted.roi.number, index, filled.mask)
            found = {"contours_overlap": filled.overlap, "contours_repeated": filled.repeat}
            painted.flags |= {flag for flag, is_met in found.items() if is_met}
        if is_sparse(rings):
            painted.flags.add("slices_skipped")
        painted.mask = self._canvas.painted.get(painted.roi.number)
        painted.planes = self._canvas.planes.get(painted.roi.number, set())
