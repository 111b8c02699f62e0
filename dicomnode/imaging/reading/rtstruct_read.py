"""An RT Structure Set from any writer, onto the planes of its source stack, without guessing (PS3.3 A.19).

Contours are filled on the planes that they lie on; `contour_masks` has the rules for holes and for voxels
whose centre lies on a contour. What a contour says of its plane (Contour Image Sequence) is compared with
where it lies, and its coordinates, which are the drawing, decide. Whatever leaves a doubt stands in
`Decoded.doubts`. A label none of whose contours could be used is neither drawn nor empty: the object says
nothing of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from types import MappingProxyType

import numpy as np
from pydicom import Dataset

from dicomnode.domain import STRUCTURE_SET_SOP_CLASS, ModelCard
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.geometry import PIXEL_SPACING_TOLERANCE
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.imaging.reading.rtstruct_defects import confidence, doubts
from dicomnode.imaging.reading.rtstruct_paint import Painted, Painter
from dicomnode.imaging.reading.rtstruct_references import referenced_instances, referenced_series, stack_of
from dicomnode.imaging.reading.rtstruct_rois import Roi, listed_rois, structure_set_name
from dicomnode.imaging.reading.seg_canvas import share_voxels

__all__ = ["decode", "referenced_instances", "referenced_series", "stack_of"]

OTHER_SLICES = 0.5
"""If more than this part of the contours lies on no plane, the drawing was made on other slices."""

_OF_OBJECT = frozenset({"codes_ambiguous", "nothing_drawn", "unlisted_roi"})
_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


def decode(
    ds: Dataset, *, stack: Stack, card: ModelCard, aliases: Mapping[str, str] = _NO_ALIASES
) -> Decoded:
    """Read a structure set onto the planes of its source stack; `stack_of` finds the stack.

    Parameters
    ----------
    ds
        Read from Part 10.
    stack
        The planes that it was drawn on; of their instances only the headers are read.
    aliases
        Names that readers give to structures -> labels of the model; case does not count.

    Returns
    -------
        `confidence` is the product of the factors of `rtstruct_defects.DEFECTS` and of the part of the
        contours that lie on planes. Contours of structures that are no label of the model raise no doubts.

    Raises
    ------
    CorrectionError
        Not a readable structure set, another series or frame of reference, drawn on other slices,
        malformed coordinates, or more than is read; the message says which.
    """
    _check_object(ds, stack.series_instance_uid)
    rois = listed_rois(ds, card, series_uid=stack.series_instance_uid, aliases=aliases)
    painter = Painter(name=structure_set_name(ds), stack=stack)
    is_named = _names_stack(ds, stack)
    structures = [painter.paint(roi, space=_space(ds, roi, stack, is_named=is_named)) for roi in rois]
    for one in structures:
        one.flags |= _writer_flags(ds, stack) if one.contours else frozenset()
    _check_slices(ds, structures, stack)
    return _decoded(ds, structures, stack, card)


def _check_object(ds: Dataset, series_uid: str) -> None:
    sop_class = attributes.text(ds, "SOPClassUID")
    if sop_class != STRUCTURE_SET_SOP_CLASS:
        raise CorrectionError(
            f"{structure_set_name(ds)} is no RT Structure Set (SOP class {sop_class or 'missing'})"
        )
    named = referenced_series(ds)
    if named is not None and named != series_uid:
        raise CorrectionError(f"{structure_set_name(ds)} was made on series {named}, not on {series_uid}")


def _names_stack(ds: Dataset, stack: Stack) -> bool:
    """Answer whether an object names the series of a stack, or one of its images."""
    own = {frame.sop_instance_uid for frame in stack.frames}
    return referenced_series(ds) == stack.series_instance_uid or bool(referenced_instances(ds) & own)


def _space(ds: Dataset, roi: Roi, stack: Stack, *, is_named: bool) -> str:
    """Compare the frame of reference of a structure with that of the stack; "" where they are one."""
    theirs, grid = roi.frame_of_reference_uid, stack.grid
    if theirs == grid.frame_of_reference_uid:
        return ""
    if theirs and grid.has_own_frame_of_reference:
        return "other_frame_of_reference"
    if not is_named:
        raise CorrectionError(
            f"{structure_set_name(ds)}: ROI {roi.number} names neither frame of reference nor series; "
            "where it lies is not told"
        )
    return "frame_of_reference_missing"


def _writer_flags(ds: Dataset, stack: Stack) -> frozenset[str]:
    """Name the defects that a writer is known for and that concern images such as these."""
    rows_mm, columns_mm = stack.frames[0].pixel_spacing_mm.tolist()
    is_unequal = not isclose(rows_mm, columns_mm, rel_tol=PIXEL_SPACING_TOLERANCE)
    is_rt_utils = attributes.text(ds, "ManufacturerModelName") == "rt-utils"
    return frozenset({"spacing_exchanged"}) if is_rt_utils and is_unequal else frozenset()


def _check_slices(ds: Dataset, structures: Sequence[Painted], stack: Stack) -> None:
    drawn = [one for one in structures if one.closed]
    relevant = [one for one in drawn if one.roi.label is not None] or drawn
    closed, used = sum(one.closed for one in relevant), sum(one.used for one in relevant)
    if closed - used > OTHER_SLICES * closed:
        raise CorrectionError(
            f"{structure_set_name(ds)}: {closed - used} of {closed} contours lie on no slice of series "
            f"{stack.series_instance_uid}: it was drawn on other slices, or oblique to them"
        )
    is_told = any(one.mask is not None or (one.roi.label and not one.contours) for one in structures)
    if not is_told and any(one.contours for one in structures):
        flags = set[str]().union(*(one.flags for one in structures)) | {"no_voxels"}
        raise CorrectionError(
            f"{structure_set_name(ds)}: none of its contours can be used: {'; '.join(doubts(flags))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Label:
    """All structures that are one label of the model."""

    flags: frozenset[str]
    contours: int
    on_planes: float  # part of the closed contours, 0..1
    mask: BoolArray | None


def _joined(structures: Sequence[Painted]) -> _Label:
    flags = set[str]().union(*(one.flags for one in structures))
    masks = [one.mask for one in structures if one.mask is not None]
    contours = sum(one.contours for one in structures)
    if len(structures) > 1:
        flags.add("label_repeated")
    if contours and not masks:
        flags.add("no_voxels")
    for mask in masks[1:]:
        masks[0] |= mask
    return _Label(
        flags=frozenset(flags),
        contours=contours,
        on_planes=sum(one.used for one in structures) / max(sum(one.closed for one in structures), 1),
        mask=masks[0] if masks else None,
    )


def _decoded(ds: Dataset, structures: Sequence[Painted], stack: Stack, card: ModelCard) -> Decoded:
    labels = _labels(structures, card)
    masks = {label: one.mask for label, one in labels.items() if one.mask is not None}
    empty = tuple(label for label, one in labels.items() if not one.contours)
    flags = set[str]().union(*(one.flags for one in structures), *(one.flags for one in labels.values()))
    said = [f"{label}: {doubt}" for label, one in labels.items() for doubt in doubts(one.flags)]
    if not any(one.contours for one in structures):
        flags.add("nothing_drawn")
    said += doubts(flags & _OF_OBJECT)
    if share_voxels(list(masks.values()), planes=set[int]().union(*(one.planes for one in structures))):
        flags.add("labels_overlap")
    return Decoded(
        sop_instance_uid=attributes.text(ds, "SOPInstanceUID"),
        referenced_series_uid=stack.series_instance_uid,
        shape=stack.shape,
        masks=masks,
        empty_labels=empty,
        unmapped=_unmapped(structures, stack.shape),
        flags=tuple(sorted(flags)),
        confidence={label: _confidence(labels[label]) for label in (*masks, *empty)},
        doubts=tuple(said),
    )


def _labels(structures: Sequence[Painted], card: ModelCard) -> dict[str, _Label]:
    """Give the labels that the object lists, in the order of the card."""
    of_label = {
        segment.label: [one for one in structures if one.roi.label == segment.label]
        for segment in card.segments
    }
    return {label: _joined(found) for label, found in of_label.items() if found}


def _confidence(label: _Label) -> float:
    return confidence(label.flags) * (label.on_planes if label.mask is not None else 1.0)


def _unmapped(structures: Sequence[Painted], shape: tuple[int, int, int]) -> dict[str, BoolArray]:
    unmapped: dict[str, BoolArray] = {}
    for one in structures:
        if one.roi.label is None:
            name = one.roi.name if one.roi.name not in unmapped else f"{one.roi.name} (ROI {one.roi.number})"
            unmapped[name] = np.zeros(shape, np.bool_) if one.mask is None else one.mask
    return unmapped
