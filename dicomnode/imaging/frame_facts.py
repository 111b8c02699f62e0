"""What an image plane says of itself besides its place: echo, b-value, phase and the like.

A single-frame image says it at the top level of its data set, a multi-frame image in the functional groups
of the frame or of all frames (PS3.3 C.7.6.16), a converted one in its unassigned attributes (C.7.6.16.2.25).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydicom import Dataset

from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray

_Value = TypeVar("_Value")
_CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_PLACE_POINTERS = frozenset({0x00209056, 0x00209057, 0x00200032, 0x00209228})
"""Dimensions that are the place itself: Stack ID, In-Stack Position Number, Image Position, Frame Number."""
_GE_IMAGE_KINDS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFacts:
    """What tells planes of one series apart that lie at one position; None where the image says nothing."""

    stack_id: str | None = None
    image_type: tuple[str, ...] = ()  # Frame Type or Image Type, and the complex image component; upper case
    echo_time_ms: float | None = None
    echo_number: int | None = None
    inversion_time_ms: float | None = None
    b_value: float | None = None  # s/mm2
    temporal_position: int | None = None
    trigger_time_ms: float | None = None
    cardiac_phase_percent: float | None = None
    respiratory_phase_percent: float | None = None
    frame_reference_time_ms: float | None = None
    acquisition_number: int | None = None
    acquisition_time: str | None = None  # date and time as far as they are said, YYYYMMDDHHMMSS.FFFFFF
    contrast_phase: str | None = None
    diffusion_direction: tuple[float, float, float] | None = None
    convolution_kernel: str | None = None
    tube_voltage_kv: float | None = None
    dimension_index: tuple[int, ...] | None = None  # without the dimensions of place


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The attributes of one frame, wherever its instance holds them; `groups` are its own, then the shared."""

    ds: Dataset
    groups: tuple[Dataset, ...] = ()

    def places(self, sequence: str) -> Iterator[Dataset]:
        """Give the data sets in which an attribute of a functional group may stand, the nearest first."""
        for group in self.groups:
            yield from attributes.items(group, sequence)[:1]
        for group in self.groups:
            for converted in _CONVERTED:
                yield from attributes.items(group, converted)[:1]
        yield self.ds

    def numbers(self, sequence: str, keyword: str) -> FloatArray | None:
        """Give the values of a numerical attribute; None where no place has finite numbers."""
        return next(self._found(sequence, keyword, attributes.numbers), None)

    def number(self, sequence: str, keyword: str) -> float | None:
        """Give the first value of a numerical attribute."""
        found = self.numbers(sequence, keyword)
        return float(found[0]) if found is not None else None

    def integer(self, sequence: str, keyword: str) -> int | None:
        """Give the one value of an integral attribute."""
        return next(self._found(sequence, keyword, attributes.integer), None)

    def texts(self, sequence: str, keyword: str) -> list[str]:
        """Give the values of a textual attribute."""
        return next(self._found(sequence, keyword, lambda ds, name: attributes.texts(ds, name) or None), [])

    def text(self, sequence: str, keyword: str) -> str | None:
        """Give the values of a textual attribute, joined; None where there is none."""
        return " ".join(self.texts(sequence, keyword)) or None

    def has_value(self, sequence: str, keyword: str) -> bool:
        """Answer whether an attribute is there and not empty, readable or not."""
        return any(attributes.has_value(place, keyword) for place in self.places(sequence))

    def _found(
        self, sequence: str, keyword: str, read: Callable[[Dataset, str], _Value | None]
    ) -> Iterator[_Value]:
        for place in self.places(sequence):
            if keyword in place and (value := read(place, keyword)) is not None:
                yield value


def read_facts(header: FrameHeader) -> FrameFacts:
    """Read what a frame says of itself; an attribute that cannot be read counts as absent."""
    return FrameFacts(
        stack_id=header.text("FrameContentSequence", "StackID"),
        image_type=_image_type(header),
        echo_time_ms=_echo_time(header),
        echo_number=header.integer("MREchoSequence", "EchoNumbers"),
        inversion_time_ms=_inversion_time(header),
        b_value=_b_value(header),
        temporal_position=_temporal_position(header),
        trigger_time_ms=_trigger_time(header),
        cardiac_phase_percent=header.number(
            "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"
        ),
        respiratory_phase_percent=header.number(
            "RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase"
        ),
        frame_reference_time_ms=header.number("", "FrameReferenceTime"),
        acquisition_number=_acquisition_number(header),
        acquisition_time=_acquisition_time(header),
        contrast_phase=_contrast_phase(header),
        diffusion_direction=_diffusion_direction(header),
        convolution_kernel=header.text("CTReconstructionSequence", "ConvolutionKernel"),
        tube_voltage_kv=header.number("CTXRayDetailsSequence", "KVP"),
        dimension_index=_dimension_index(header),
    )


def frame_type(header: FrameHeader) -> tuple[str, ...]:
    """Read the Frame Type of a multi-frame image or the Image Type of a single-frame image, in upper case."""
    for sequence in _FRAME_TYPES:
        values = header.texts(sequence, "FrameType")
        if values:
            return tuple(value.upper() for value in values)
    return tuple(value.upper() for value in attributes.texts(header.ds, "ImageType"))


def siemens_mosaic_tiles(ds: Dataset) -> int:
    """Read how many slices a Siemens image shows side by side; 0 where it says nothing."""
    found = _private_numbers(ds, 0x0019, "SIEMENS MR HEADER", 0x0A, "<H")
    return int(found[0]) if found is not None else 0


def _image_type(header: FrameHeader) -> tuple[str, ...]:
    component = header.text("MRImageFrameTypeSequence", "ComplexImageComponent")
    kind = _private_numbers(header.ds, 0x0043, "GEMS_PARM_01", 0x2F, "<h")
    more = [component] if component and component != "MIXED" else []
    if kind is not None and 0 < kind[0] < len(_GE_IMAGE_KINDS):
        more.append(_GE_IMAGE_KINDS[int(kind[0])])
    return (*frame_type(header), *(value.upper() for value in more))


def _echo_time(header: FrameHeader) -> float | None:
    effective = header.number("MREchoSequence", "EffectiveEchoTime")
    return header.number("MREchoSequence", "EchoTime") if effective is None else effective


def _inversion_time(header: FrameHeader) -> float | None:
    found = header.number("MRModifierSequence", "InversionTimes")
    return header.number("", "InversionTime") if found is None else found


def _b_value(header: FrameHeader) -> float | None:
    standard = header.number("MRDiffusionSequence", "DiffusionBValue")
    if standard is not None:
        return standard
    private = (
        (0x0019, "SIEMENS MR HEADER", 0x0C, "<i"),
        (0x2001, "Philips Imaging DD 001", 0x03, "<f"),
        (0x0043, "GEMS_PARM_01", 0x39, "<i"),
    )
    for element in private:
        found = _private_numbers(header.ds, *element)
        if found is not None:
            return float(found[0]) % 1_000_000  # GE adds 10^9 to some values
    return None


def _diffusion_direction(header: FrameHeader) -> tuple[float, float, float] | None:
    found = None
    for item in header.places("MRDiffusionSequence"):
        for place in (*attributes.items(item, "DiffusionGradientDirectionSequence")[:1], item):
            found = attributes.numbers(place, "DiffusionGradientOrientation") if found is None else found
    if found is None:
        found = _private_numbers(header.ds, 0x0019, "SIEMENS MR HEADER", 0x0E, "<d")
    if found is None or found.size != 3:
        return None
    return float(found[0]), float(found[1]), float(found[2])


def _temporal_position(header: FrameHeader) -> int | None:
    found = header.integer("FrameContentSequence", "TemporalPositionIndex")
    return header.integer("", "TemporalPositionIdentifier") if found is None else found


def _trigger_time(header: FrameHeader) -> float | None:
    found = header.number("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
    return header.number("", "TriggerTime") if found is None else found


def _acquisition_number(header: FrameHeader) -> int | None:
    found = header.integer("FrameContentSequence", "FrameAcquisitionNumber")
    return header.integer("", "AcquisitionNumber") if found is None else found


def _acquisition_time(header: FrameHeader) -> str | None:
    frame = header.text("FrameContentSequence", "FrameAcquisitionDateTime")
    date, time = (attributes.text(header.ds, keyword) for keyword in ("AcquisitionDate", "AcquisitionTime"))
    return frame or attributes.text(header.ds, "AcquisitionDateTime") or (f"{date}{time}" if time else None)


def _contrast_phase(header: FrameHeader) -> str | None:
    phase = header.text("ContrastBolusUsageSequence", "ContrastBolusAgentPhase")
    administered = header.text("ContrastBolusUsageSequence", "ContrastBolusAgentAdministered")
    if phase or administered:
        return phase or f"agent administered {administered}"
    return header.text("", "ContrastBolusAgent")


def _dimension_index(header: FrameHeader) -> tuple[int, ...] | None:
    values = header.numbers("FrameContentSequence", "DimensionIndexValues")
    pointers = [
        item.get("DimensionIndexPointer") for item in attributes.items(header.ds, "DimensionIndexSequence")
    ]
    if values is None or len(pointers) != values.size:
        return None
    return tuple(
        int(value) for value, tag in zip(values, pointers, strict=True) if tag not in _PLACE_POINTERS
    )


def _private_numbers(ds: Dataset, group: int, creator: str, offset: int, binary: str) -> FloatArray | None:
    """Read a private element by its creator; of unknown value representation it is text or binary."""
    try:
        value = ds.private_block(group, creator)[offset].value
    except attributes.UNREADABLE:
        return None
    if isinstance(value, bytes):
        return _decoded(value, binary)
    try:
        numbers = np.array(value, np.float64).reshape(-1)
    except attributes.UNREADABLE:
        return None
    return numbers if numbers.size and np.isfinite(numbers).all() else None


def _decoded(value: bytes, binary: str) -> FloatArray | None:
    try:
        if value and all(byte in b"0123456789+-.eE\\ \0" for byte in value) and any(value):
            texts = value.decode("ascii").replace("\0", " ").split("\\")
            return np.array([float(text) for text in texts[:1]], np.float64)
        count = len(value) // struct.calcsize(binary)
        numbers = np.array(struct.unpack_from(f"<{count}{binary[1:]}", value), np.float64)
    except (ValueError, struct.error):
        return None
    return numbers if numbers.size and np.isfinite(numbers).all() else None
