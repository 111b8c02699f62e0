"""What a reader's object says, on the planes of its source stack, whatever form it came in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dicomnode.imaging.identity import BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A segmentation or a structure set as masks on the planes of its source stack.

    Attributes
    ----------
    masks
        Label of the model -> bool (frame, row, column) in the order of `Stack.frames`; only labels with
        voxels. Masks may overlap.
    empty_labels
        Labels of the model that the object lists without a voxel.
    unmapped
        Segments that are no label of the model, by their Segment Label; kept, never trained.
    flags
        What was repaired or is doubtful, one word each: `position_conflict`, `resampled`, ...
    confidence
        Label of the model -> how surely its mask is what the reader drew, 0..1; for every label of
        `masks` and `empty_labels`. 1.0 where nothing had to be repaired.
    doubts
        Sentences: why a person must look at the object before anything is learned from it. Empty where the
        standard or the source series settles everything.
    """

    sop_instance_uid: str
    referenced_series_uid: str
    shape: tuple[int, int, int]
    masks: Mapping[str, BoolArray]
    empty_labels: tuple[str, ...]
    unmapped: Mapping[str, BoolArray]
    flags: tuple[str, ...]
    confidence: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def unmapped_labels(self) -> tuple[str, ...]:
        """Segment Labels that are no label of the model, also those without voxels."""
        return tuple(self.unmapped)
