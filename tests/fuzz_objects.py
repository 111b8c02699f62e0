"""Whole objects of every writer, that are read right, and small files that unpack to large ones."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO

import highdicom as hd
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading.seg_codes import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED
from dicomnode.imaging.results import rtstruct_write, seg_write
from tests.frame_builders import frame_groups, multi_frame
from tests.fuzz_builders import Base, Element, Mask, Tree, parse
from tests.imaging_builders import (
    LABEL_MAP,
    foreign_seg,
    item,
    make_card,
    make_series,
    make_volume,
    part_10,
)
from tests.interop.seg_cases import OBLIQUE
from tests.seg_builders import RUN, found_in
from tests.seg_pixel_builders import as_bits, deflated, run_lengths

CARD = make_card()
LABELS = tuple(segment.label for segment in CARD.segments)
SHAPE = (4, 5, 7)
CANARIES = {0x00100010: b"CANARY^VOICE", 0x00100020: b"CANARY-7731 ", 0x00100030: b"19340917"}
"""Who the patient of every object is; none of it may stand in a message."""

_VR_OF = dict(zip(CANARIES, ("PN", "LO", "DA"), strict=True))
_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_DEFLATED = "deflated frames"
_SEGMENT_NUMBER = 0x0062000B


def truth() -> NDArray[np.uint8]:
    """Two labels of which no two slices, rows or columns are alike, in 7 frames of 8 possible."""
    labels = np.random.default_rng(20).integers(0, 3, SHAPE).astype(np.uint8)
    labels[0][labels[0] == 2] = 0
    return labels


def bases() -> dict[str, Base]:
    """Every object: of our own writers, of highdicom, and such as others write."""
    plain = make_series(make_volume(np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)))
    oblique = make_series(make_volume(np.ones(SHAPE, np.uint16), axes=OBLIQUE, spacing_mm=(3.3, 0.9, 0.7)))
    enhanced = [multi_frame([frame_groups((0, 0, 2.0 * k)) for k in range(4)], np.ones(SHAPE, np.uint16))]
    objects: list[tuple[str, Sequence[Dataset], Dataset]] = []
    for name, sources in {"plain": plain, "oblique": oblique, "enhanced": enhanced}.items():
        objects += [(f"ours, {form}, {name}", sources, ds) for form, ds in _ours(sources).items()]
    objects += [(f"highdicom, {kind}", plain, _highdicom(plain, kind)) for kind in _KINDS]
    objects += [(name, plain, ds) for name, ds in _others(plain).items()]
    return {name: _base(name, sources, ds) for name, sources, ds in objects}


def _base(name: str, sources: Sequence[Dataset], ds: Dataset) -> Base:
    tree = _as_deflated(parse(part_10(ds))) if name == _DEFLATED else parse(part_10(ds))
    patient = tuple(Element(tag=tag, vr=_VR_OF[tag], value=value) for tag, value in CANARIES.items())
    others = tuple(one for one in tree.content if one.tag not in CANARIES)
    labels = truth()
    return Base(
        name=name,
        tree=replace(tree, content=tuple(sorted((*patient, *others), key=lambda one: one.tag))),
        stack=only_stack(sources),
        truth={label: labels == number for number, label in enumerate(LABELS, 1)},
        sop_instance_uid=str(ds.SOPInstanceUID),
    )


def _as_deflated(tree: Tree) -> Tree:
    """Say the transfer syntax of the frames, which pydicom does not write."""
    value = DEFLATED_FRAMES.encode()
    return replace(
        tree, meta=tuple(replace(one, value=value) if one.tag == 0x00020010 else one for one in tree.meta)
    )


def _ours(sources: Sequence[Dataset]) -> dict[str, Dataset]:
    findings = found_in(sources, truth(), CARD)
    contours = rtstruct_write.encode(findings, run=RUN)
    assert contours is not None
    (binary,) = seg_write.encode_binary(findings, run=RUN)
    return {
        "binary": binary,
        "label map": seg_write.encode_label_map(findings, run=RUN),
        "contours": _explicit(contours),
    }


def _explicit(ds: Dataset) -> Dataset:
    """The same data set, ready to be written in Explicit VR Little Endian."""
    found = dcmread(BytesIO(part_10(ds)))
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for one in found.iterall():
        one.value  # noqa: B018  # decoded now, so that pydicom knows its value representation
    return found


def _highdicom(sources: Sequence[Dataset], kind: str) -> Dataset:
    masks = np.stack([truth() == number for number in (1, 2)], axis=-1)
    segments = [
        hd.seg.SegmentDescription(
            number, label, codes.SCT.Organ, codes.SCT.Brain, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, label in enumerate(LABELS, 1)
    ]
    return hd.seg.Segmentation(
        source_images=list(sources),
        pixel_array=masks.astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid="1.2.826.0.1.3680043.10.11.1",
        series_number=5,
        sop_instance_uid="1.2.826.0.1.3680043.10.11.2",
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )


def _frames() -> list[tuple[int, int, Mask]]:
    return [(n, k, truth()[k] == n) for n in (1, 2) for k in range(SHAPE[0]) if np.any(truth()[k] == n)]


def _others(sources: Sequence[Dataset]) -> dict[str, Dataset]:
    """Bare objects: what dcmjs writes, positions or references alone, and every form of pixels."""
    frames = _frames()
    masks = [mask.astype(np.uint8) for _, _, mask in frames]
    dcmjs = foreign_seg(sources, frames, manufacturer="Unspecified")
    dcmjs.DimensionIndexSequence = [item(DimensionIndexPointer=_SEGMENT_NUMBER)]
    for (number, _, _), frame in zip(frames, dcmjs.PerFrameFunctionalGroupsSequence, strict=True):
        frame.FrameContentSequence = [item(DimensionIndexValues=[number])]
    whole = foreign_seg(sources, frames)
    whole.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    forms = {
        "1-bit RLE, packed": (RLELossless, [run_lengths(as_bits(mask)) for mask in masks]),
        "1-bit RLE, bytes": (RLELossless, [run_lengths(mask.tobytes()) for mask in masks]),
        _DEFLATED: (UID(ENCAPSULATED_UNCOMPRESSED), [deflated(as_bits(mask)) for mask in masks]),
    }
    return {
        "dcmjs, binary": dcmjs,
        "dcmjs, label map": _dcmjs_label_map(sources),
        "positions alone": _with_grid(foreign_seg(sources, frames, by_reference=False)),
        "references alone": foreign_seg(sources, frames, by_position=False),
        "not preserved": _with_grid(foreign_seg(sources, frames, preserved="NO")),
        "deflated": whole,
        **{name: _in_items(foreign_seg(sources, frames), *form) for name, form in forms.items()},
    }


def _with_grid(ds: Dataset) -> Dataset:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [item(PixelSpacing=[0.75, 0.5], SpacingBetweenSlices=2, SliceThickness=2)]
    return ds


def _dcmjs_label_map(sources: Sequence[Dataset]) -> Dataset:
    labels = truth()
    drawn = [(1, k, labels[k] > 0) for k in range(SHAPE[0])]
    ds = foreign_seg(sources, drawn, manufacturer="Unspecified")
    for groups in ds.PerFrameFunctionalGroupsSequence:
        del groups.SegmentIdentificationSequence
    ds.SOPClassUID, ds.SegmentationType = LABEL_MAP, "LABELMAP"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    return _in_items(ds, RLELossless, [run_lengths(plane.tobytes()) for plane in labels])


def _in_items(ds: Dataset, syntax: UID, frames: Sequence[bytes]) -> Dataset:
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(list(frames))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


# Small files that claim, or unpack to, far more than they hold ----------------------------------------------

_HUGE = 46341  # rows and columns of 2**31 pixels
_LARGE = 5792  # of what is still read


def bombs(objects: Mapping[str, Base]) -> dict[str, tuple[Base, bytes]]:
    """Claims of too much, and frames of a few bytes that unpack to as much as they claim."""
    label_map, binary = objects["highdicom, LABELMAP"], objects["highdicom, BINARY"]
    contours, free = objects["ours, contours, plain"], objects["positions alone"]
    made = {
        "2**31 bits": (binary, _of_size(binary, _HUGE)),
        "2**31 bytes": (label_map, _of_size(label_map, _HUGE)),
        "2**31 frames": (binary, _with(binary, NumberOfFrames=2**31 - 1)),
        "65535 segments": (binary, _with(binary, SegmentSequence=_segments(65_535))),
        "65536 values": (label_map, _all_values(label_map)),
        "20000 empty frames": (binary, _empty_frames(binary, 20_000)),
        "far slices": (free, _far_slices(free)),
        "too many points": (contours, _many_points(contours, 1_500_000)),
        "wide contour": (contours, _wide_contour(contours)),
    }
    for side in (_HUGE, _LARGE):
        for name, (syntax, code) in _codes(side).items():
            ds = _in_items(_of_size(label_map, side), UID(syntax), [code])
            made[f"{name} of {side} x {side}"] = (label_map, ds)
    return {name: (base, part_10(ds)) for name, (base, ds) in made.items()}


def _with(base: Base, **attributes: object) -> Dataset:
    ds = dcmread(BytesIO(base.tree.encode()))
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def _of_size(base: Base, side: int) -> Dataset:
    ds = _with(base, Rows=side, Columns=side, NumberOfFrames=1)
    ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[:1]
    return ds


def _codes(side: int) -> dict[str, tuple[str, bytes]]:
    small = np.zeros((8, 8), np.uint8)
    runs = b"\x81\x00" * min(side * side // 128 + 1, 2**18)
    j2k = bytearray(imagecodecs.jpeg2k_encode(small, level=0, codecformat="j2k", reversible=True))
    struct.pack_into(">LL", j2k, 8, side, side)  # size of the image, then of its tiles (ITU-T T.800 A.5.1)
    struct.pack_into(">LL", j2k, 24, side, side)
    jpeg = bytearray(imagecodecs.jpeg8_encode(small, lossless=True, predictor=1, bitspersample=8))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc3") + 5, side, side)
    jpeg_ls = bytearray(imagecodecs.jpegls_encode(small))
    struct.pack_into(">HH", jpeg_ls, jpeg_ls.index(b"\xff\xf7") + 5, side, side)
    return {
        "run lengths": (RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + runs),
        "JPEG 2000": (JPEG2000Lossless, bytes(j2k)),
        "JPEG": (JPEGLosslessSV1, bytes(jpeg)),
        "JPEG-LS": (JPEGLSLossless, bytes(jpeg_ls)),
    }


def _segments(count: int) -> list[Dataset]:
    return [item(SegmentNumber=number, SegmentLabel=f"s{number}") for number in range(1, count + 1)]


def _all_values(base: Base) -> Dataset:
    ds = _of_size(base, 256)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelData = np.arange(2**16, dtype="<u2").tobytes()
    return ds


def _empty_frames(base: Base, count: int) -> Dataset:
    ds = _with(base, NumberOfFrames=count, PerFrameFunctionalGroupsSequence=[Dataset()] * count)
    ds.PixelData = bytes((int(ds.Rows) * int(ds.Columns) * count + 7) // 8)
    return ds


def _far_slices(base: Base) -> Dataset:
    """Slices of 0.1 mm, the last of them 9 m away."""
    ds = _with(base)
    *near, last = ds.PerFrameFunctionalGroupsSequence
    for k, frame in enumerate(near):
        frame.PlanePositionSequence[0].ImagePositionPatient = [-10, 20, round(30 + 0.1 * k, 1)]
    last.PlanePositionSequence[0].ImagePositionPatient = [-10, 20, 9000]
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 0.1
    return ds


def _many_points(base: Base, count: int) -> Dataset:
    ds = _with(base)
    ds.ROIContourSequence[0].ContourSequence[0].add_new(0x30060050, "UN", b"1\\2\\3\\" * count)
    return ds


def _wide_contour(base: Base) -> Dataset:
    """A square of 30 m on the plane of the first contour."""
    ds = _with(base)
    contour = ds.ROIContourSequence[0].ContourSequence[0]
    corners = ((-15000, -15000), (15000, -15000), (15000, 15000), (-15000, 15000))
    contour.ContourData = [value for x, y in corners for value in (x, y, contour.ContourData[2])]
    contour.NumberOfContourPoints = 4
    return ds
