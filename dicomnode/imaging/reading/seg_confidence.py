"""What each finding of the reader means: how far a mask is still trusted, and whether a person must look.

| The reader met | Mask is learned from |
|---|---|
| what the standard allows, or a defect that the source series settles | yes, flagged |
| a defect that a rule settles, of a writer known for it | yes, flagged, with less confidence |
| a contradiction or a loss, settled by a rule or not | after a person has looked |
| what no rule settles | never: `CorrectionError` |

`REMARKS` says it for each finding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One finding: the factor by which it lowers confidence, why, and the doubt that it raises, if any."""

    factor: float
    reason: str
    doubt: str = ""


REMARKS: Mapping[str, Remark] = {
    # which label a segment is
    "label_by_alias": Remark(factor=0.95, reason="the site says what its readers mean by the name"),
    "label_by_codes": Remark(factor=0.9, reason="codes are kept when a reader renames a segment"),
    "label_conflict": Remark(
        factor=0.7,
        reason="tracking UID, name and codes are of different labels",
        doubt="its tracking UID, name and codes say different labels of the model",
    ),
    "label_repeated": Remark(
        factor=0.8,
        reason="the union of several segments is taken",
        doubt="several of its segments are the same label of the model",
    ),
    "codes_ambiguous": Remark(
        factor=1.0,
        reason="the segments stay unmapped",
        doubt="several of its segments have the codes of the same label, and none has a label's name",
    ),
    "label_as_background": Remark(
        factor=1.0,
        reason="the segment is left out",
        doubt="a label of the model is marked as background or padding",
    ),
    # which segment a frame is
    "segment_numbers_remapped": Remark(
        factor=0.9, reason="frames have old segment numbers; Dimension Index Values count the listed ones"
    ),
    "segment_numbers_by_rank": Remark(
        factor=0.6,
        reason="frames have segment numbers that are not listed; only their order speaks for the labels",
        doubt="its frames belong to segments that it does not list; labels were given in ascending order",
    ),
    "segment_numbers_contradicted": Remark(
        factor=0.7,
        reason="frames of one segment have several dimension indices for it, or those of several have one",
        doubt="segment numbers and dimension indices of its frames contradict each other",
    ),
    "unlisted_segment": Remark(
        factor=0.9,
        reason="a label map has values that no segment lists; they may belong to a label",
        doubt="it has voxels of a segment that it does not list",
    ),
    # where a frame lies
    "no_references": Remark(factor=0.95, reason="position alone, nothing confirms it"),
    "no_positions": Remark(factor=0.95, reason="source reference alone, nothing confirms it"),
    "dcmjs_positions_alone": Remark(
        factor=0.8,
        reason="versions of this writer mirrored positions",
        doubt="only positions say where its frames lie, and versions of its writer mirrored them",
    ),
    "reference_conflict": Remark(
        factor=0.95, reason="a frame names several planes of the stack; its position says which one is meant"
    ),
    "position_imprecise": Remark(
        factor=0.95, reason="reference and position mean the same plane, the latter by less than half a voxel"
    ),
    "position_conflict": Remark(
        factor=0.9, reason="reference and position name different planes; a rule says which one holds"
    ),
    "conflict_unsettled": Remark(
        factor=0.7,
        reason="the conflict is not the one that its writer is known for",
        doubt="source references and positions of its frames name different slices",
    ),
    "frames_repeated": Remark(
        factor=0.8,
        reason="the union is taken; frames with voxels of one segment on one slice may belong to others",
        doubt="several of its frames show the same segment on the same slice",
    ),
    "slices_skipped": Remark(
        factor=0.5,
        reason="readers who draw on every other slice, or on thicker ones, mean those between, too",
        doubt="no two neighbouring slices have voxels of a label; slices were probably skipped",
    ),
    "in_plane_flip": Remark(factor=1.0, reason="the orientation of a frame says it exactly"),
    "cropped": Remark(factor=1.0, reason="voxel for voxel on the lattice of the source"),
    "outside_of_images": Remark(factor=1.0, reason="frames or parts of them beyond the images are left out"),
    "voxels_dropped": Remark(
        factor=0.9, reason="the labels are cut", doubt="it has voxels where the series has no image"
    ),
    "resampled": Remark(factor=0.7, reason="nearest neighbour moves borders by up to half a voxel"),
    "thin_label_left_out": Remark(factor=1.0, reason="it would be torn; it is taken as unknown"),
    # pixels
    "fractional": Remark(factor=1.0, reason="values 0 and maximum are a mask"),
    "fractional_thresholded": Remark(factor=0.8, reason="the border is where the value is half the maximum"),
    "fractions_of_one": Remark(factor=0.95, reason="this writer is known to put 1 for the maximum"),
    "fractions_below_half": Remark(
        factor=1.0, reason="no voxel is taken", doubt="all its fractions are below half of their maximum"
    ),
    "no_maximum_fractional_value": Remark(
        factor=0.9,
        reason="all voxels have one value, which is taken for the maximum",
        doubt="it does not say which value of its fractions is the maximum",
    ),
    "maybe_lossy": Remark(
        factor=0.8,
        reason="nothing in the codestream shows whether values were kept",
        doubt="its compression may have changed the labels",
    ),
    "encapsulated_under_native": Remark(factor=1.0, reason="the items of the pixel data show the form"),
    "one_bit_rle": Remark(factor=1.0, reason="the decoded length shows the form"),
    "frames_byte_aligned": Remark(factor=1.0, reason="the length of the pixel data shows the form"),
    "labels_overlap": Remark(factor=1.0, reason="each label keeps its own mask"),
    "nothing_drawn": Remark(
        factor=1.0, reason="no viewer saves this on purpose", doubt="none of its segments has a voxel"
    ),
}
"""Finding -> what it means. A finding that is not here changes nothing."""


def confidence(*flags: Iterable[str]) -> float:
    """Multiply the factors of findings: 1.0 where nothing had to be repaired."""
    return prod((REMARKS[flag].factor for flag in sorted(set().union(*flags)) if flag in REMARKS), start=1.0)


def doubts(flags: Iterable[str]) -> tuple[str, ...]:
    """Give the sentences for the findings that a person must look at, in the order of `REMARKS`."""
    found = set(flags)
    return tuple(remark.doubt for flag, remark in REMARKS.items() if flag in found and remark.doubt)
