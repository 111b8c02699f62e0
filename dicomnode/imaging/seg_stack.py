"""Which stack of a series a segmentation is about."""

from collections.abc import Sequence

from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.seg_frames import FrameLocator, PlaneIndex, source_images
from dicomnode.imaging.stacks import Stack


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
    if len(stacks) == 1:
        return stacks[0]
    remaining = _holding(_frame_references(ds), stacks)
    if not remaining:
        raise CorrectionError(
            f"{segmentation_name(ds)} refers to planes of several stacks of series "
            f"{stacks[0].series_instance_uid}: {_names(stacks)}; save one segmentation for each"
        )
    remaining = _holding(_listed_references(ds), remaining) or remaining
    if len(remaining) > 1:
        remaining = _fitting(ds, remaining)
    if len(remaining) == 1:
        return remaining[0]
    fits = f"as well {_names(remaining)}" if remaining else f"none of {_names(stacks)}"
    raise CorrectionError(
        f"{segmentation_name(ds)}: which stack of series {stacks[0].series_instance_uid} it was made on "
        f"cannot be told; by its size and positions it fits {fits}"
    )


def _holding(references: Sequence[Dataset], stacks: Sequence[Stack]) -> list[Stack]:
    """Give the stacks that have every plane that is referred to and that any of them has."""
    held = [
        frozenset(number for number, reference in enumerate(references) if index.holds(reference))
        for index in map(PlaneIndex, stacks)
    ]
    known = frozenset[int]().union(*held)
    return [stack for stack, numbers in zip(stacks, held, strict=True) if numbers == known]


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
    """Give the stacks of the right size and space; of several, those that have a plane at every frame."""
    placed = [(stack, _frames_placed(ds, stack)) for stack in stacks]
    alike = [(stack, count) for stack, count in placed if count is not None]
    if len(alike) <= 1:
        return [stack for stack, _ in alike]
    frames = len(attributes.items(ds, "PerFrameFunctionalGroupsSequence"))
    return [stack for stack, count in alike if count == frames]


def _frames_placed(ds: Dataset, stack: Stack) -> int | None:
    """Count the frames at the position of a plane; None where the object is on another grid altogether."""
    try:
        return FrameLocator(ds, stack).places_at_positions()
    except CorrectionError:
        return None


def _names(stacks: Sequence[Stack]) -> str:
    return "; ".join(f"{stack.name or 'unnamed'} ({len(stack.frames)} slices)" for stack in stacks)
