"""What a report says of each label: its measurements (PS3.16 TID 1411, 1501), or that it was not found."""

from collections.abc import Mapping, Sequence

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes

from dicomnode.domain import Code, ModelCard, Segment
from dicomnode.imaging import attributes
from dicomnode.imaging.identity import tracking_identifier
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.results.findings import Findings, Measure
from dicomnode.imaging.results.result_header import coded
from dicomnode.imaging.results.sr_quantities import Quantity, pixel_quantity

Group = VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations

_ANATOMY = frozenset({("SCT", "123037004"), ("SCT", "91723000"), ("SRT", "T-D000A")})
_SIDES = frozenset(
    {
        *(("SCT", value) for value in ("24028007", "7771000", "51440002", "66459002")),
        *(("SRT", value) for value in ("G-A100", "G-A101", "G-A102", "G-A103")),
    }
)
"""CID 244: right, left, both, one of them; and the codes that it had before."""
_LATERALITY = Code(value="272741003", scheme="SCT", meaning="Laterality")
_TOPOGRAPHY = Code(value="106233006", scheme="SCT", meaning="Topographical modifier")
_ADJECTIVE = Code(value="106234000", scheme="SCT", meaning="General adjectival modifier")
_NOT_DETECTED = Code(value="260415000", scheme="SCT", meaning="Not detected")


def measurement_groups(findings: Findings, segs: Sequence[Dataset]) -> list[Group]:
    """Describe every label that was found, in the order of the card.

    Parameters
    ----------
    segs
        Segmentations that hold every found label between them; () where the reader has none, and the groups
        refer to the images on which the label was found.

    Raises
    ------
    ValueError
        There are segmentations, and none of them holds a label that was found.
    """
    quantity = pixel_quantity(findings.stack)
    algorithm = _algorithm(findings.card)
    segments = _referenced_segments(segs, findings.stack.series_instance_uid)
    images = {} if segs else _source_images(findings)
    groups: list[Group] = []
    for one in findings.found:
        if segs:
            groups.append(_on_segment(one, segments, quantity, algorithm))
        else:
            groups.append(_on_images(one, images[one.segment.segment_number], quantity, algorithm))
        _write_modifier_of_finding(groups[-1], one.segment)
    return groups


def not_found(findings: Findings) -> list[CodeContentItem]:
    """Say of every label that was looked for and has no voxel that it was not detected.

    They are evaluations of the report (TID 1500 row 13), not groups: readers take a report's groups to be of
    one template, and TID 1411 has no group without a region.
    """
    items = []
    for segment in (one.segment for one in findings.measures if not one.voxels):
        item = CodeContentItem(coded(segment.type), coded(_NOT_DETECTED), RelationshipTypeValues.CONTAINS)
        if segment.type_modifier:
            item.ContentSequence = ContentSequence([_modifier(segment, segment.type_modifier)])
        items.append(item)
    return items


def _on_segment(
    measure: Measure,
    segments: Mapping[str, ReferencedSegment],
    quantity: Quantity,
    algorithm: AlgorithmIdentification,
) -> Group:
    """Write TID 1411, the measurements of a segment."""
    if measure.tracking_uid not in segments:
        raise ValueError(f"the label {measure.segment.label!r} was found and is in none of the segmentations")
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(measure),
        referenced_segment=segments[measure.tracking_uid],
        finding_category=coded(measure.segment.category),
        finding_type=coded(measure.segment.type),
        finding_sites=_sites(measure.segment),
        algorithm_id=algorithm,
        measurements=_measurements(measure, quantity),
    )


def _on_images(
    measure: Measure,
    images: Sequence[SourceImageForMeasurementGroup],
    quantity: Quantity,
    algorithm: AlgorithmIdentification,
) -> Group:
    """Write TID 1501, measurements of images: a region needs a segment or its contour (TID 1411 row 7)."""
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(measure),
        source_images=images,
        finding_category=coded(measure.segment.category),
        finding_type=coded(measure.segment.type),
        finding_sites=_sites(measure.segment),
        algorithm_id=algorithm,
        measurements=_measurements(measure, quantity),
    )


def _tracking(measure: Measure) -> TrackingIdentifier:
    uid = measure.tracking_uid
    return TrackingIdentifier(uid=uid, identifier=tracking_identifier(measure.segment.label, uid))


def _measurements(measure: Measure, quantity: Quantity) -> list[Measurement]:
    volume = Measurement(
        name=codes.SCT.Volume,
        value=float(measure.millilitres),
        unit=codes.UCUM.CubicCentimeter,  # a millilitre; CID 7462 has no other name for it
        method=codes.cid7474.SumOfSegmentedVoxelMethodForVolume,
    )
    statistics = ((measure.mean, codes.SCT.Mean), (measure.sd, codes.SCT.StandardDeviation))
    return [
        volume,
        *(
            Measurement(
                name=coded(quantity.name), value=value, unit=coded(quantity.unit), derivation=derivation
            )
            for value, derivation in statistics
            if value is not None
        ),
    ]


def _sites(segment: Segment) -> list[FindingSite]:
    """Say where a finding is: in its region, or for a part of the body without one, in that part itself."""
    place = segment.region or (segment.type if _is_anatomy(segment) else None)
    if place is None:
        return []
    modifier = segment.type_modifier
    of_place = modifier if modifier and not _is_modifier_of_finding(segment) else None
    is_lateral = of_place is not None and _is_laterality(of_place)
    return [
        FindingSite(
            anatomic_location=coded(place),
            laterality=coded(of_place) if of_place and is_lateral else None,
            topographical_modifier=coded(of_place) if of_place and not is_lateral else None,
        )
    ]


def _is_modifier_of_finding(segment: Segment) -> bool:
    """Answer whether the modifier is wrong of the site: the anterior hippocampus is not anterior brain."""
    if segment.type_modifier is None:
        return False
    if _is_laterality(segment.type_modifier):
        return segment.region is None and not _is_anatomy(segment)
    return segment.region is not None or not _is_anatomy(segment)


def _write_modifier_of_finding(group: Group, segment: Segment) -> None:
    if segment.type_modifier and _is_modifier_of_finding(segment):
        (finding,) = (item for item in group[0].ContentSequence if item.name == codes.DCM.Finding)
        finding.ContentSequence = ContentSequence([_modifier(segment, segment.type_modifier)])


def _modifier(segment: Segment, modifier: Code) -> CodeContentItem:
    """Write the modifier of a segment's type, to stand under the code of that type."""
    name = _TOPOGRAPHY if _is_anatomy(segment) else _ADJECTIVE
    if _is_laterality(modifier):
        name = _LATERALITY
    return CodeContentItem(coded(name), coded(modifier), RelationshipTypeValues.HAS_CONCEPT_MOD)


def _is_anatomy(segment: Segment) -> bool:
    return (segment.category.scheme, segment.category.value) in _ANATOMY


def _is_laterality(code: Code) -> bool:
    return (code.scheme, code.value) in _SIDES


def _algorithm(card: ModelCard) -> AlgorithmIdentification:
    """Name the model, its version, and its weights by their digest (TID 4019)."""
    return AlgorithmIdentification(
        name=card.name,
        version=card.version,
        parameters=[f"weights_sha256={card.weights_sha256}"],
        family=codes.cid7162.ArtificialIntelligence,
    )


def _referenced_segments(segs: Sequence[Dataset], series_instance_uid: str) -> dict[str, ReferencedSegment]:
    """Refer to the segments of all segmentations, by their Tracking UID."""
    return {
        attributes.text(item, "TrackingUID"): ReferencedSegment(
            sop_class_uid=attributes.text(seg, "SOPClassUID"),
            sop_instance_uid=attributes.text(seg, "SOPInstanceUID"),
            segment_number=int(item.SegmentNumber),
            source_series=SourceSeriesForSegmentation(series_instance_uid),
        )
        for seg in segs
        for item in seg.SegmentSequence
        if attributes.text(item, "TrackingUID")
    }


def _source_images(findings: Findings) -> dict[int, list[SourceImageForMeasurementGroup]]:
    """Refer to the images on which each found label has voxels, by segment number.

    An item that names a whole instance is one object in every group: there are thousands of references.
    """
    shared: dict[str, SourceImageForMeasurementGroup] = {}
    images: dict[int, list[SourceImageForMeasurementGroup]] = {}
    for number in (one.segment.segment_number for one in findings.found):
        planes = np.flatnonzero(findings.voxels_per_plane[:, number]).tolist()
        images[number] = []
        for sop_class_uid, uid, frame_numbers in image_references(
            [findings.stack.frames[plane] for plane in planes]
        ):
            item = shared.get(uid) or SourceImageForMeasurementGroup(sop_class_uid, uid, frame_numbers)
            if frame_numbers is None:
                shared[uid] = item
            images[number].append(item)
    return images


def image_references(frames: Sequence[SourceFrame]) -> list[tuple[str, str, list[int] | None]]:
    """List SOP class, instance and frame numbers of planes; the numbers are None for a whole instance."""
    numbers: dict[int, list[int]] = {}
    for frame in frames:
        numbers.setdefault(id(frame.ds), []).append(frame.frame_number)
    references = []
    for frame in {id(frame.ds): frame for frame in frames}.values():
        own = sorted(numbers[id(frame.ds)])
        is_whole = not frame.is_multi_frame or len(own) == attributes.integer(frame.ds, "NumberOfFrames")
        sop_class_uid = attributes.text(frame.ds, "SOPClassUID")
        references.append((sop_class_uid, frame.sop_instance_uid, None if is_whole else own))
    return references
