"""What may be wrong with a structure of a received RT Structure Set, and what follows from it."""

from collections.abc import Iterable, Mapping
from math import prod

from dicomnode.imaging.reading.seg_confidence import REMARKS, Remark

_LABELS = ("label_by_alias", "label_by_codes", "codes_ambiguous", "label_as_background")

DEFECTS: Mapping[str, Remark] = {
    **{flag: REMARKS[flag] for flag in _LABELS},
    "label_conflict": Remark(
        factor=REMARKS["label_conflict"].factor,
        reason="tracking UID, names and codes are of different labels",
        doubt="its tracking UID, name, observation label and code say different labels of the model",
    ),
    "label_repeated": Remark(
        factor=REMARKS["label_repeated"].factor,
        reason="the union of several structures is taken",
        doubt="several structures are this label; they were joined",
    ),
    "structure_repeated": Remark(
        factor=0.5,
        reason="all contours under one number are taken together; some may belong to another structure",
        doubt="its contours are listed in several places, some of which may be meant for another structure",
    ),
    "contours_not_closed": Remark(factor=0.9, reason="points and open lines enclose nothing; left out"),
    "contours_degenerate": Remark(
        factor=0.95,
        reason="a contour of one or two points encloses nothing but the voxels that it goes through",
    ),
    "point_count_missing": Remark(factor=0.95, reason="nothing confirms that a contour is whole"),
    "frame_of_reference_missing": Remark(
        factor=0.95, reason="the series is named; that its coordinates are meant is not said"
    ),
    "contours_repeated": Remark(
        factor=0.8,
        reason="the even-odd rule would leave nothing of it",
        doubt="a contour is there twice; it was counted once",
    ),
    "contours_outside": Remark(
        factor=0.8, reason="the mask is cut at the border of the image", doubt="contours go beyond the image"
    ),
    "contour_without_points": Remark(
        factor=0.8, reason="the mask may lack a part", doubt="a contour has no points"
    ),
    "contour_kind_unknown": Remark(
        factor=0.5,
        reason="whether it encloses anything is not told; left out",
        doubt="a contour is said to be neither closed nor open nor a point",
    ),
    "contour_offset": Remark(
        factor=0.5,
        reason="the retired Contour Offset Vector moves it; left out",
        doubt="a contour is offset from its place, which is not read",
    ),
    "contours_off_planes": Remark(
        factor=1.0,
        reason="the part of the contours that lies on planes is a factor of its own",
        doubt="contours lie between the slices or oblique to them; they were left out",
    ),
    "position_conflict": Remark(
        factor=0.5,
        reason="the coordinates are the drawing",
        doubt="contours lie on another slice than the one that they name; they were read where they lie",
    ),
    "other_images": Remark(
        factor=0.5,
        reason="the drawing may have been made on another series",
        doubt="contours name images that are not of this stack",
    ),
    "other_frame_of_reference": Remark(
        factor=0.5,
        reason="left out",
        doubt="it is drawn in another frame of reference; a registration is needed",
    ),
    "contours_overlap": Remark(
        factor=0.5,
        reason="holes by the even-odd rule; others would join them",
        doubt="contours partly cover each other; where two do, nothing was read",
    ),
    "point_count_differs": Remark(
        factor=0.5,
        reason="the coordinates that are there are taken",
        doubt="a contour has another number of points than it says; it may be cut",
    ),
    "slices_skipped": Remark(
        factor=0.5,
        reason="readers who draw on every other slice mean those between, too",
        doubt="no two neighbouring slices have contours; slices were probably skipped",
    ),
    "unlisted_roi": Remark(
        factor=1.0,
        reason="they may be those of a structure that has none",
        doubt="it has contours of a structure that it does not list",
    ),
    "spacing_exchanged": Remark(
        factor=0.2,
        reason="rt-utils takes the spacing of rows for that of columns; nothing in the object shows it",
        doubt="its writer misplaces contours where rows and columns are spaced unequally, as here",
    ),
    "no_voxels": Remark(
        factor=0.0, reason="nothing is said of the label", doubt="none of its contours holds a voxel"
    ),
    "labels_overlap": REMARKS["labels_overlap"],
    "nothing_drawn": Remark(
        factor=1.0, reason="no program saves this on purpose", doubt="none of its structures has a contour"
    ),
}
"""Flag of a structure -> what it means. A flag that is not here changes nothing."""


def confidence(flags: Iterable[str]) -> float:
    """Give how surely a structure with these flags is what the reader drew, 0..1."""
    return prod((DEFECTS[flag].factor for flag in flags if flag in DEFECTS), start=1.0)


def doubts(flags: Iterable[str]) -> list[str]:
    """Give why a person must look at a structure with these flags."""
    wanted = set(flags)
    return [defect.doubt for flag, defect in DEFECTS.items() if flag in wanted and defect.doubt]
