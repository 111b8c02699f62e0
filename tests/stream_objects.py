"""What comes to a site in a week: our objects back, other products' results, and what readers drew.

Each object is made with what is to become of it. Masks are (slice, row, column) in slice order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import cycle

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from dicomnode.domain import ModelCard, ModelVersion, ResultForm, Sha256
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results import rtstruct_write, seg_write
from dicomnode.imaging.results.findings import Findings, Run, measure
from tests.imaging_builders import NOW, item, reread
from tests.pipeline_builders import BACK, FRONT, MODEL, Mask, mr_series, tiny_segments

LABELS = (FRONT, BACK)
Masks = dict[str, Mask]
SEGMENTS = {segment.label: segment for segment in tiny_segments()}


class Fate(StrEnum):
    """What becomes of an object, as the test says it."""

    NOTHING = "nothing happens"  # these very bytes are known
    DROPPED = "loop_back, recorded"
    FOREIGN = "foreign, recorded"
    KEPT = "kept"
    HELD = "held"
    REFUSED = "set aside"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A series, what we found in it, and what we sent of it."""

    images: Sequence[Dataset]  # of the stack that was segmented, in slice order
    prediction: Masks
    sent: Mapping[ResultForm, Dataset]
    earlier: Mapping[ResultForm, Dataset] = field(default_factory=dict)  # of a version before
    tilt_mm: float = 0.0  # by which each slice lies further along the columns

    @property
    def uid(self) -> str:
        """Its Series Instance UID."""
        return str(self.images[0].SeriesInstanceUID)


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One object of the stream."""

    kind: str  # for the table
    source: Source
    ds: Dataset
    fates: frozenset[Fate]
    drawn: Masks = field(default_factory=dict)  # of our labels; an empty mask: erased
    sender: str = "PACS"
    doubt: str = ""  # a part of the reason why it is held
    made: datetime | None = None  # by the reader, before it came


# Series.


def tilted(images: list[Dataset], tilt_mm: float) -> list[Dataset]:
    for k, ds in enumerate(images):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, float(y) + tilt_mm * k, z]
    return images


def with_a_scout(images: list[Dataset]) -> list[Dataset]:
    """The same series with a second stack, of images of another size."""
    scouts = mr_series(99, patient_id=str(images[0].PatientID), shape=(8, 16, 14))
    for number, ds in enumerate(scouts, start=100):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = images[0].StudyInstanceUID, images[0].SeriesInstanceUID
        ds.InstanceNumber = number
    return [*images, *scouts]


def on_grid(labels: np.ndarray, tilt_mm: float, shape: tuple[int, ...]) -> np.ndarray:
    """Row r of the grid shows, on slice k, the row of a pixel of 1 mm that lies nearest to r - k tilts."""
    grid = np.zeros(shape, np.uint8)
    for k in range(shape[0]):
        for row in range(shape[1]):
            nearest = round(row - tilt_mm * k)
            if 0 <= nearest < labels.shape[1]:
                grid[k, row] = labels[k, nearest]
    return grid


# Our objects, as they come back.


def fresh_uids(ds: Dataset, *keywords: str) -> Dataset:
    """Give an object other UIDs, as archives do that merge or copy studies."""
    for keyword in keywords:
        setattr(ds, keyword, generate_uid())
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def coerced(ds: Dataset) -> Dataset:
    return fresh_uids(ds, "SOPInstanceUID")


def coerced_throughout(ds: Dataset) -> Dataset:
    return fresh_uids(ds, "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def of_another_patient(ds: Dataset) -> Dataset:
    ds.PatientID, ds.PatientName, ds.AccessionNumber = "MERGED-1", "Other^Name", "A-99"
    return ds


def redescribed(ds: Dataset) -> Dataset:
    ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = "AI", 77, 5
    return ds


def encoded_as(syntax: str) -> Callable[[Dataset], Dataset]:
    def encode(ds: Dataset) -> Dataset:
        if ds.file_meta.TransferSyntaxUID == RLELossless:
            ds.decompress(generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = syntax
        return ds

    return encode


def with_private_elements(ds: Dataset) -> Dataset:
    block = ds.private_block(0x0099, "SOME ARCHIVE 1.0", create=True)
    block.add_new(0x01, "LO", "routed")
    block.add_new(0x02, "SQ", [item(CodeValue="1")])
    ds.InstanceAvailability = "ONLINE"
    return ds


def without_what_archives_drop(ds: Dataset) -> Dataset:
    for keyword in (
        "ContentDescription",
        "ContributingEquipmentSequence",
        "SoftwareVersions",
        "ImageComments",
    ):
        if keyword in ds:
            delattr(ds, keyword)
    return without_tracking(coerced(ds))


def without_tracking(ds: Dataset) -> Dataset:
    for one in (*ds.get("SegmentSequence", ()), *ds.get("StructureSetROISequence", ())):
        for keyword in ("TrackingID", "TrackingUID"):
            if keyword in one:
                delattr(one, keyword)
    return ds


def without_serial_number(ds: Dataset) -> Dataset:
    """Leave out what de-identification without the option for devices removes (PS3.15 E.3.7)."""
    del ds.DeviceSerialNumber
    return coerced_throughout(ds)


def in_utf8(ds: Dataset) -> Dataset:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.StudyDescription = "Müller^Änne", "Schädel nativ"
    return coerced(ds)


def in_another_space(ds: Dataset) -> Dataset:
    """Give every place that names the frame of reference another one, as copies of whole studies get."""
    other = generate_uid()
    for element in ds.iterall():
        if element.keyword in {"FrameOfReferenceUID", "ReferencedFrameOfReferenceUID"}:
            element.value = other
    return coerced_throughout(ds)


def everything(ds: Dataset) -> Dataset:
    changes = (coerced_throughout, of_another_patient, redescribed, with_private_elements, in_utf8)
    for change in changes:
        ds = change(ds)
    return encoded_as(DeflatedExplicitVRLittleEndian)(ds)


def as_sent(ds: Dataset) -> Dataset:
    return ds


WAYS_BACK: Mapping[str, Callable[[Dataset], Dataset]] = {
    "as sent": as_sent,
    "SOP UID": coerced,
    "all UIDs": coerced_throughout,
    "patient": of_another_patient,
    "description": redescribed,
    "implicit VR": encoded_as(ImplicitVRLittleEndian),
    "explicit VR": encoded_as(ExplicitVRLittleEndian),
    "deflated": encoded_as(DeflatedExplicitVRLittleEndian),
    "private elements": with_private_elements,
    "elements dropped": without_what_archives_drop,
    "no serial number": without_serial_number,
    "UTF-8": in_utf8,
    "everything": everything,
}
SENT = (ResultForm.SEG, ResultForm.LABEL_MAP, ResultForm.RTSTRUCT)


def loop_backs(sources: Sequence[Source], count: int) -> Iterator[Entry]:
    """Every way back in turn, of every form of every source, those of earlier versions among them."""
    ways = cycle(WAYS_BACK.items())
    objects = [
        (f"{age}{form}", source, sent[form])
        for form in SENT
        for source in sources
        for age, sent in (("our ", source.sent), ("our earlier ", source.earlier))
        if form in sent
    ]
    for (form, source, ds), (way, change), _ in zip(cycle(objects), ways, range(count), strict=False):
        back = change(reread(ds))
        fate = {Fate.NOTHING} if is_same(back, ds) else {Fate.DROPPED}
        yield Entry(kind=f"{form}: {way}", source=source, ds=back, fates=frozenset(fate))


def is_same(one: Dataset, other: Dataset) -> bool:
    """Answer whether two objects are the same bytes."""
    syntaxes = {ds.file_meta.TransferSyntaxUID for ds in (one, other)}
    return len(syntaxes) == 1 and one == other


def moved_objects(sources: Sequence[Source]) -> Iterator[Entry]:
    """Our objects in another frame of reference, which nothing can be told of."""
    for source, form in zip(sources, cycle(SENT), strict=False):
        moved = in_another_space(reread(source.sent[form]))
        refused = frozenset({Fate.REFUSED, Fate.DROPPED})
        yield Entry(kind=f"our {form}: other space", source=source, ds=moved, fates=refused)


# What others wrote.


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What a product says of itself and of its algorithm."""

    manufacturer: str
    model: str
    algorithm_type: str = "AUTOMATIC"
    algorithm: str = ""
    form: str = "BINARY"


def write_seg(
    source: Source,
    masks: Masks,
    by: Writer,
    *,
    order: Sequence[str] = LABELS,
    named: Mapping[str, str] | None = None,
    series_uid: str = "",
) -> Dataset:
    """Write masks with highdicom; labels in the order given, those without a key in `masks` left out."""
    listed = [label for label in order if label in masks]
    pixels = np.zeros((*masks[listed[0]].shape, len(listed)), np.uint8)
    for number, label in enumerate(listed):
        pixels[..., number] = masks[label]
    is_map = by.form == "LABELMAP"
    ds = hd.seg.Segmentation(
        source_images=list(source.images),
        pixel_array=(pixels * np.arange(1, len(listed) + 1, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)
        if is_map
        else pixels.astype(np.float32)
        if by.form == "FRACTIONAL"
        else pixels,
        segmentation_type=by.form,
        segment_descriptions=[
            _described(number, label, by, (named or {}).get(label, label))
            for number, label in enumerate(listed, 1)
        ],
        series_instance_uid=series_uid or generate_uid(),
        series_number=501,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=by.manufacturer,
        manufacturer_model_name=by.model,
        software_versions="1",
        device_serial_number="7",
    )
    del ds.ContentDate, ds.ContentTime
    return ds


def _described(number: int, label: str, by: Writer, name: str) -> hd.seg.SegmentDescription:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=by.algorithm or "unnamed", version="1", family=codes.cid7162.ArtificialIntelligence
    )
    segment = SEGMENTS[label]
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=CodedConcept(segment.type.value, "SCT", segment.type.meaning),
        algorithm_type=by.algorithm_type,
        algorithm_identification=None if by.algorithm_type == "MANUAL" else algorithm,
    )
    modifier = segment.type_modifier
    if modifier is not None and name == label:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [
            CodedConcept(modifier.value, "SCT", modifier.meaning)
        ]
    if by.algorithm_type != "MANUAL":
        description.SegmentAlgorithmName = by.algorithm
    return description


def findings_of(source: Source, masks: Masks) -> Findings:
    """Masks as another node finds them; of a series that is a plain column of slices."""
    series = to_volume(source.images)
    labels = np.zeros(series.image.shape, np.uint8)
    for label, mask in masks.items():
        labels[mask] = SEGMENTS[label].segment_number
    card = ModelCard(
        name=MODEL,
        version=ModelVersion(f"{MODEL}@0123456789ab"),
        weights_sha256=Sha256("0123456789ab" + 52 * "0"),
        segments=tiny_segments(),
    )
    return measure(series.image.with_array(labels), series=series, card=card)


def by_another_node(source: Source, masks: Masks, form: ResultForm) -> Dataset:
    """Write masks as another site's node does, which derives the same Tracking UIDs."""
    findings, run = findings_of(source, masks), Run(created_at=NOW, revision="elsewhere")
    if form is ResultForm.LABEL_MAP:
        return reread(seg_write.encode_label_map(findings, run=run))
    if form is ResultForm.SEG:
        return reread(seg_write.encode_binary(findings, run=run)[0])
    contours = rtstruct_write.encode(findings, run=run)
    assert contours is not None
    return reread(contours)


def write_contours(source: Source, masks: Masks, by: Writer) -> Dataset:
    """Write masks as the structure set of another product."""
    ds = coerced_throughout(without_tracking(by_another_node(source, masks, ResultForm.RTSTRUCT)))
    ds.StudyInstanceUID = source.images[0].StudyInstanceUID
    ds.Manufacturer, ds.ManufacturerModelName, ds.DeviceSerialNumber = by.manufacturer, by.model, "7"
    for roi in ds.StructureSetROISequence:
        roi.ROIGenerationAlgorithm, roi.ROIGenerationDescription = by.algorithm_type, by.algorithm
        del roi.ROIDerivationAlgorithmIdentificationSequence
    del ds.StructureSetDate, ds.StructureSetTime, ds.StructureSetName, ds.StructureSetDescription
    return ds


def edited(masks: Masks, generator: np.random.Generator, *labels: str) -> Masks:
    """What a reader makes of masks: a piece taken away on one slice, a piece added on another."""
    changed = {label: mask.copy() for label, mask in masks.items()}
    for label in labels or LABELS:
        mask = changed[label]
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        cut, grown = generator.choice(slices, 2, replace=False)
        rows = np.flatnonzero(mask[cut].any(axis=1))
        mask[cut, generator.choice(rows)] = False
        row, column = generator.integers(0, 10, 2)
        for other in changed.values():
            other[grown, row : row + 2, column : column + 2] = other is mask
    return {label: changed[label] for label in labels or LABELS}


def anew(source: Source, generator: np.random.Generator) -> Masks:
    """Draw two small blocks that nothing of ours resembles."""
    masks = {label: np.zeros_like(mask) for label, mask in source.prediction.items()}
    row, column = generator.integers(0, 8, 2)
    masks[FRONT][0:2, row, column : column + 2] = True
    masks[BACK][0:2, row + 1, column : column + 2] = True
    return masks


def as_dcmjs(ds: Dataset, *, has_frame_content: bool) -> Dataset:
    """Turn an object into what the library of OHIF 3.13 and later writes."""
    ds.Manufacturer = ds.ManufacturerModelName = "Unspecified"
    ds.SoftwareVersions, ds.DeviceSerialNumber = "0", "1"
    ds.ContentLabel, ds.ImageComments = "SEGMENTATION", "NOT FOR CLINICAL USE"
    for frame in ds.PerFrameFunctionalGroupsSequence:
        if not has_frame_content:
            del frame.FrameContentSequence
        for derivation in frame.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                if "ReferencedSOPClassUID" in image:  # frames of one slice share the item
                    del image.ReferencedSOPClassUID
                image.ReferencedFrameNumber = 1
    for segment in ds.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence = [
            item(CodeValue="T-D0050", CodingSchemeDesignator="SRT", CodeMeaning="Tissue")
        ]
    return ds


def with_tracking(ds: Dataset, source: Source) -> Dataset:
    """Keep our Tracking UIDs, as a program that edits segments in place does."""
    ours = {one.SegmentLabel: one for one in source.sent[ResultForm.SEG].SegmentSequence}
    for segment in ds.SegmentSequence:
        if segment.SegmentLabel in ours:
            segment.TrackingID = ours[segment.SegmentLabel].TrackingID
            segment.TrackingUID = ours[segment.SegmentLabel].TrackingUID
    return ds


def naming_ours(ds: Dataset, keyword: str, source: Source) -> Dataset:
    """Reference our segmentation: as a predecessor, else among the referenced instances."""
    ours = source.sent[ResultForm.SEG]
    reference = item(ReferencedSOPClassUID=ours.SOPClassUID, ReferencedSOPInstanceUID=ours.SOPInstanceUID)
    if keyword == "PredecessorDocumentsSequence":
        series = item(SeriesInstanceUID=ours.SeriesInstanceUID, ReferencedSOPSequence=[reference])
        reference = item(StudyInstanceUID=ours.StudyInstanceUID, ReferencedSeriesSequence=[series])
    setattr(ds, keyword, [reference])
    return ds


def with_background(ds: Dataset) -> Dataset:
    """Describe the value 0 of a label map as a segment, as the standard asks."""
    background = item(
        SegmentNumber=0,
        SegmentLabel="Background",
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=[item(CodeValue="309825002", CodingSchemeDesignator="SCT")],
        SegmentedPropertyTypeCodeSequence=[item(CodeValue="125040", CodingSchemeDesignator="DCM")],
    )
    found = [segment for segment in ds.SegmentSequence if segment.SegmentNumber]
    ds.SegmentSequence = [*found, background]
    return ds


def is_plain(source: Source) -> bool:
    """Answer whether a series is a plain column of slices, which `findings_of` takes."""
    return source.tilt_mm == 0


def in_our_series(ds: Dataset, source: Source) -> Dataset:
    ds.SeriesInstanceUID = source.sent[ResultForm.SEG].SeriesInstanceUID
    return ds


def in_place(ds: Dataset, source: Source) -> Dataset:
    """Under the UIDs of ours of the same class."""
    (ours,) = (sent for sent in source.sent.values() if sent.SOPClassUID == ds.SOPClassUID)
    ds.SeriesInstanceUID = ours.SeriesInstanceUID
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ours.SOPInstanceUID
    return ds


def dated(entry: Entry, generator: np.random.Generator) -> Entry:
    """Let a third of the drawings be made days before they come, in another order."""
    if generator.random() > 1 / 3:
        return entry
    made = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=int(generator.integers(86400)))
    prefix = "StructureSet" if "StructureSetLabel" in entry.ds else "Content"
    setattr(entry.ds, f"{prefix}Date", made.strftime("%Y%m%d"))
    setattr(entry.ds, f"{prefix}Time", made.strftime("%H%M%S"))
    return replace(entry, made=made)
