"""The images that a received RT Structure Set refers to, and the stack that it was drawn on."""

from collections.abc import Sequence

from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.contour_planes import ContourPlanes
from dicomnode.imaging.reading.rtstruct_contours import Limits, read_contours
from dicomnode.imaging.reading.rtstruct_rois import check_count, structure_set_name
from dicomnode.imaging.reading.stack_choice import choose_stack

_HEADER = ("ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence", "RTReferencedSeriesSequence")


def referenced_series(ds: Dataset) -> str | None:
    """Series that a structure set says it was made on; None where it names none.

    Raises
    ------
    CorrectionError
        It names several, and its contours are on images of none or several of them.
    """
    listed = _listed(ds)
    named = {uid for uid in listed if uid}
    if len(named) > 1:
        drawn_on = _uids(_contour_images(ds))
        named = {uid for uid in named if drawn_on & _uids(listed[uid])}
        if len(named) != 1:
            raise CorrectionError(
                f"{structure_set_name(ds)} references {len(listed)} series, "
                f"its contours name images of {len(named)} of them"
            )
    return next(iter(named), None)


def referenced_instances(ds: Dataset) -> frozenset[str]:
    """SOP Instance UIDs of all images that the contours or the header of a structure set refer to.

    Raises
    ------
    CorrectionError
        It has more structures than are read.
    """
    listed = [reference for references in _listed(ds).values() for reference in references]
    return frozenset(_uids(listed) | _uids(_contour_images(ds)))


def stack_of(ds: Dataset, stacks: Sequence[Stack]) -> Stack:
    """Find the stack of a series that a structure set was drawn on; see `stack_choice.choose_stack`.

    Raises
    ------
    CorrectionError
        It refers to images of several stacks, or fits none or several of them alike.
    """
    return choose_stack(
        stacks,
        name=structure_set_name(ds),
        drawn_on=_contour_images(ds),
        listed=[reference for references in _listed(ds).values() for reference in references],
        fitting=lambda remaining: [stack for stack in remaining if _lies_on(ds, stack)],
    )


def _listed(ds: Dataset) -> dict[str, list[Dataset]]:
    """Give the image references of the header (PS3.3 C.8.8.5), by the series that they stand under."""
    level = [ds]
    for keyword in _HEADER:
        level = [item for one in level for item in attributes.items(one, keyword)]
    listed: dict[str, list[Dataset]] = {}
    for series in level:
        images = attributes.items(series, "ContourImageSequence")
        listed.setdefault(attributes.text(series, "SeriesInstanceUID"), []).extend(images)
    return listed


def _contour_images(ds: Dataset) -> list[Dataset]:
    rois = attributes.items(ds, "ROIContourSequence")
    check_count(ds, len(rois))
    return [
        image
        for roi in rois
        for contour in attributes.items(roi, "ContourSequence")
        for image in attributes.items(contour, "ContourImageSequence")
    ]


def _uids(references: Sequence[Dataset]) -> set[str]:
    return {attributes.text(one, "ReferencedSOPInstanceUID") for one in references} - {""}


def _lies_on(ds: Dataset, stack: Stack) -> bool:
    """Answer whether all closed contours lie on planes of a stack."""
    name = structure_set_name(ds)
    planes, limits = ContourPlanes(stack), Limits(name)
    return all(
        planes.at(contour.points) is not None
        for roi in attributes.items(ds, "ROIContourSequence")
        for contour in read_contours(roi, name=name, limits=limits)
        if len(contour.points)
    )
