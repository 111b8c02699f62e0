"""Which stack of a series a received object is about, whatever form it has."""

from collections.abc import Callable, Sequence

from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.seg_planes import PlaneIndex


def choose_stack(
    stacks: Sequence[Stack],
    *,
    name: str,
    drawn_on: Sequence[Dataset],
    listed: Sequence[Dataset],
    fitting: Callable[[Sequence[Stack]], list[Stack]],
) -> Stack:
    """Find the stack of a series that an object was made on.

    The planes that its parts refer to decide; else the instances that its header lists; else where its parts
    lie. In a series of one stack there is nothing to find: whether the object fits is for its reader to say.

    Parameters
    ----------
    stacks
        All stacks of one series, at least one.
    name
        The object, for messages.
    drawn_on
        Image references (PS3.3 Table 10-3) of its frames or contours.
    listed
        Those of its header.
    fitting
        Gives those of some stacks on which its parts lie.

    Raises
    ------
    CorrectionError
        It refers to planes of several stacks, or fits none or several of them alike; the message names them.
    """
    if len(stacks) == 1:
        return stacks[0]
    remaining = _holding(drawn_on, stacks)
    if not remaining:
        raise CorrectionError(
            f"{name} refers to planes of several stacks of series "
            f"{stacks[0].series_instance_uid}: {_names(stacks)}; save one object for each"
        )
    remaining = _holding(listed, remaining) or remaining
    if len(remaining) > 1:
        remaining = fitting(remaining)
    if len(remaining) == 1:
        return remaining[0]
    fits = f"as well {_names(remaining)}" if remaining else f"none of {_names(stacks)}"
    raise CorrectionError(
        f"{name}: which stack of series {stacks[0].series_instance_uid} it was made on "
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


def _names(stacks: Sequence[Stack]) -> str:
    return "; ".join(f"{stack.name or 'unnamed'} ({len(stack.frames)} slices)" for stack in stacks)
