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
_GE_B_VALUE_FLAG = 1_000_000  # GE adds multiples of it to b-values
_GE_IMAGE_KINDS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The attributes of one frame, wherever its instance holds them; `groups`: its own, then the shared."""

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


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What tells planes of one series apart that lie at one position; None where the image says nothing.

    Each fact is read when it is asked for; one that cannot be read counts as absent.
    """

    header: FrameHeader

    @property
    def stack_id(self) -> str | None:
        """Stack ID (0020,9056)."""
        return self.header.text("FrameContentSequence", "StackID")

    @property
    def image_type(self) -> tuple[str, ...]:
        """Frame Type or Image Type, and the complex image component where it adds something; upper case."""
        types = frame_type(self.header)
        component = self.header.text("MRImageFrameTypeSequence", "ComplexImageComponent")
        kind = _private_numbers(self.header, 0x0043, "GEMS_PARM_01", 0x2F, "<h")
        more = [component.upper()] if component and component != "MIXED" else []
        if kind is not None and 0 < kind[0] < len(_GE_IMAGE_KINDS):
            more.append(_GE_IMAGE_KINDS[int(kind[0])])
        return (*types, *more)

    @property
    def echo_time_ms(self) -> float | None:
        """Effective Echo Time of a frame, Echo Time of a single-frame image."""
        effective = self.header.number("MREchoSequence", "EffectiveEchoTime")
        return self.header.number("MREchoSequence", "EchoTime") if effective is None else effective

    @property
    def echo_number(self) -> int | None:
        """Echo Number(s) (0018,0086), where it is one."""
        return self.header.integer("MREchoSequence", "EchoNumbers")

    @property
    def inversion_time_ms(self) -> float | None:
        """First of the Inversion Times of a frame, Inversion Time of a single-frame image."""
        found = self.header.number("MRModifierSequence", "InversionTimes")
        return self.header.number("", "InversionTime") if found is None else found

    @property
    def repetition_time_ms(self) -> float | None:
        """Repetition Time (0018,0080)."""
        return self.header.number("MRTimingAndRelatedParametersSequence", "RepetitionTime")

    @property
    def flip_angle_deg(self) -> float | None:
        """Flip Angle (0018,1314)."""
        return self.header.number("MRTimingAndRelatedParametersSequence", "FlipAngle")

    @property
    def b_value(self) -> float | None:
        """Diffusion b-value in s/mm2: the standard attribute, else that of Siemens, Philips or GE."""
        standard = self.header.number("MRDiffusionSequence", "DiffusionBValue")
        if standard is not None:
            return standard
        private = (
            (0x0019, "SIEMENS MR HEADER", 0x0C, "<i"),
            (0x2001, "Philips Imaging DD 001", 0x03, "<f"),
            (0x0043, "GEMS_PARM_01", 0x39, "<i"),
        )
        found = [_private_numbers(self.header, *element) for element in private]
        values = [float(one[0]) % _GE_B_VALUE_FLAG for one in found if one is not None]
        return values[0] if values else None

    @property
    def diffusion_direction(self) -> tuple[float, float, float] | None:
        """Diffusion Gradient Orientation (0018,9089), else that of Siemens."""
        found = None
        for item in self.header.places("MRDiffusionSequence"):
            for place in (*attributes.items(item, "DiffusionGradientDirectionSequence")[:1], item):
                found = attributes.numbers(place, "DiffusionGradientOrientation") if found is None else found
        if found is None:
            found = _private_numbers(self.header, 0x0019, "SIEMENS MR HEADER", 0x0E, "<d")
        if found is None or found.size != 3:
            return None
        return float(found[0]), float(found[1]), float(found[2])

    @property
    def temporal_position(self) -> int | None:
        """Temporal Position Index of a frame, Temporal Position Identifier of a single-frame image."""
        found = self.header.integer("FrameContentSequence", "TemporalPositionIndex")
        return self.header.integer("", "TemporalPositionIdentifier") if found is None else found

    @property
    def trigger_time_ms(self) -> float | None:
        """Nominal Cardiac Trigger Delay Time of a frame, Trigger Time of a single-frame image."""
        found = self.header.number("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
        return self.header.number("", "TriggerTime") if found is None else found

    @property
    def cardiac_phase_percent(self) -> float | None:
        """Nominal Percentage of Cardiac Phase (0020,9241)."""
        return self.header.number("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase")

    @property
    def respiratory_phase_percent(self) -> float | None:
        """Nominal Percentage of Respiratory Phase (0020,9245)."""
        return self.header.number("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase")

    @property
    def frame_reference_time_ms(self) -> float | None:
        """Frame Reference Time (0054,1300) of PET."""
        return self.header.number("", "FrameReferenceTime")

    @property
    def acquisition_number(self) -> int | None:
        """Frame Acquisition Number of a frame, Acquisition Number of a single-frame image."""
        found = self.header.integer("FrameContentSequence", "FrameAcquisitionNumber")
        return self.header.integer("", "AcquisitionNumber") if found is None else found

    @property
    def acquisition_time(self) -> str | None:
        """Date and time of acquisition as far as they are said, YYYYMMDDHHMMSS.FFFFFF."""
        frame = self.header.text("FrameContentSequence", "FrameAcquisitionDateTime")
        ds = self.header.ds
        date, time = attributes.text(ds, "AcquisitionDate"), attributes.text(ds, "AcquisitionTime")
        return frame or attributes.text(ds, "AcquisitionDateTime") or (f"{date}{time}" if time else None)

    @property
    def contrast_phase(self) -> str | None:
        """Contrast/Bolus Agent Phase of a frame, Contrast/Bolus Agent of a single-frame image."""
        sequence = "ContrastBolusUsageSequence"
        phase = self.header.text(sequence, "ContrastBolusAgentPhase")
        administered = self.header.text(sequence, "ContrastBolusAgentAdministered")
        if phase or administered:
            return phase or f"agent administered {administered}"
        return self.header.text("", "ContrastBolusAgent")

    @property
    def convolution_kernel(self) -> str | None:
        """Convolution Kernel (0018,1210) of CT."""
        return self.header.text("CTReconstructionSequence", "ConvolutionKernel")

    @property
    def tube_voltage_kv(self) -> float | None:
        """KVP (0018,0060) of CT."""
        return self.header.number("CTXRayDetailsSequence", "KVP")

    @property
    def dimension_index(self) -> tuple[int, ...] | None:
        """Dimension Index Values (0020,9157) without the dimensions that are the place itself."""
        values = self.header.numbers("FrameContentSequence", "DimensionIndexValues")
        dimensions = attributes.items(self.header.ds, "DimensionIndexSequence")
        if values is None or len(dimensions) != values.size:
            return None
        tags = [attributes.element(item, "DimensionIndexPointer") for item in dimensions]
        return tuple(
            int(value)
            for value, tag in zip(values, tags, strict=True)
            if tag is None or tag.value not in _PLACE_POINTERS
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
    found = _private_numbers(FrameHeader(ds), 0x0019, "SIEMENS MR HEADER", 0x0A, "<H")
    return int(found[0]) if found is not None else 0


def _private_numbers(
    header: FrameHeader, group: int, creator: str, offset: int, binary: str
) -> FloatArray | None:
    """Read a private element of a single-frame image; text or binary where its representation is unknown."""
    if header.groups:
        return None
    try:
        value = header.ds.private_block(group, creator)[offset].value
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
    """Read the bytes of an element as numbers; Integer Strings, marked by `<i`, are text in most files."""
    try:
        if binary == "<i" and any(value) and all(byte in b"0123456789+- \\\0" for byte in value):
            first = value.decode("ascii").replace("\0", " ").split("\\")[0]
            return np.array([float(first)], np.float64)
        count = len(value) // struct.calcsize(binary)
        numbers = np.array(struct.unpack_from(f"<{count}{binary[1:]}", value), np.float64)
    except (ValueError, struct.error):
        return None
    return numbers if numbers.size and np.isfinite(numbers).all() else None
