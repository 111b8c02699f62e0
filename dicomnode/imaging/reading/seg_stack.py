"""Which stack of a series a segmentation is about."""

from collections.abc import Sequence

from pydicom import Dataset

from dicomnode.errors import InputError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.seg_frames import FrameLocator, source_images
from dicomnode.imaging.reading.stack_choice import choose_stack


def stack_of(ds: Dataset, stacks: Sequence[Stack]) -> Stack:
    """Find the stack of a series that a segmentation was made on.

    The planes that its frames refer to decide; else the instances that its header lists; else its size, frame
    of reference and the positions of its frames. In a series of one stack there is nothing to find: whether
    the segmentation fits is for `decode` to say.

    Parameters
    ----------
    stacks
        All stacks of one series, at least one.

    Raises
    ------
    CorrectionError
        It refers to planes of several stacks, or fits none or several of them alike; the message names them.
    """
    return choose_stack(
        stacks,
        name=segmentation_name(ds),
        drawn_on=_frame_references(ds),
        listed=_listed_references(ds),
        fitting=lambda remaining: _fitting(ds, remaining),
    )


def fits(ds: Dataset, stacks: Sequence[Stack]) -> bool:
    """Answer whether a segmentation that refers to nothing can only have been made on one of these stacks.

    It is of the same study and names the same frame of reference, and every frame lies, pixel for pixel and
    wholly, on a plane of exactly one of them.

    Parameters
    ----------
    stacks
        All stacks of one series of the study.
    """
    frames = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
    study_uid = attributes.text(ds, "StudyInstanceUID")
    named = attributes.text(ds, "FrameOfReferenceUID")
    candidates = [
        stack
        for stack in stacks
        if study_uid and study_uid == attributes.text(stack.first, "StudyInstanceUID")
        if named and stack.grid.has_own_frame_of_reference
    ]
    return bool(frames) and sum(_lies_on(ds, stack) for stack in candidates) == 1


def _lies_on(ds: Dataset, stack: Stack) -> bool:
    try:
        locator = FrameLocator(ds, stack)
        return all(
            spot is not None and locator.is_within(index, spot) for index, spot in enumerate(locator.spots())
        )
    except InputError:
        return False


def _frame_references(ds: Dataset) -> list[Dataset]:
    groups = [
        *attributes.items(ds, "PerFrameFunctionalGroupsSequence"),
        *attributes.items(ds, "SharedFunctionalGroupsSequence"),
    ]
    return [reference for group in groups for reference in source_images(group)]


def _listed_references(ds: Dataset) -> list[Dataset]:
    return [
        reference
        for series in attributes.items(ds, "ReferencedSeriesSequence")
        for reference in attributes.items(series, "ReferencedInstanceSequence")
    ]


def _fitting(ds: Dataset, stacks: Sequence[Stack]) -> list[Stack]:
    """Give the stacks of the right size and space; of several, those that have a plane at every frame.

    Where none has the right size: those of which every frame is a part, pixel for pixel.
    """
    whole = [stack for stack in stacks if _is_whole(ds, stack)]
    return whole if len(whole) == 1 else [stack for stack in whole or stacks if _lies_on(ds, stack)]


def _is_whole(ds: Dataset, stack: Stack) -> bool:
    try:
        return FrameLocator(ds, stack).is_whole()
    except InputError:
        return False
