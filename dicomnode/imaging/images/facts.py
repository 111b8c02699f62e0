"""What a stack of slices is: facts by which a route chooses, read from headers and geometry, not pixels."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.domain import ImageKind, Plane
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.stacks import Stack

OBLIQUE_COSINE = 0.8
"""A stack whose normal has no component as large as this is called oblique (37 degrees)."""

_DECIMALS = (
    6  # of lengths in mm; what comes after them is noise of the positions that they were computed from
)
_PLANES = (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)  # of the normals along x, y, z (LPS)
_SECONDARY_CAPTURE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[1-4])?")  # PS3.4 table B.5-1

# Image Type (0008,0008), value 3 and later: PS3.3 C.8.3.1.1.1 (MR), C.8.2.1.1.1 (CT), C.8.16.1.3 and .4
# (enhanced: flavour and derived pixel contrast); the rest are words that scanners write. "_" is read as " ".
_WORDS: Mapping[ImageKind, frozenset[str]] = {
    ImageKind.SCREEN: frozenset(
        ("SCREEN", "SCREEN SAVE", "SCREENSAVE", "SCREEN CAPTURE", "SECONDARY CAPTURE", "CSA REPORT", "REPORT")
    ),
    ImageKind.LOCALIZER: frozenset(("LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVEY")),
    ImageKind.PROJECTION: frozenset(
        (
            *(
                "MIP",
                "MAXIP",
                "MINIP",
                "MNIP",
                "MIN IP",
                "MAX IP",
                "AIP",
                "PROJECTION IMAGE",
                "CSA MIP",
                "MAXIMUM",
                "MINIMUM",
            ),
            *("VR", "VRT", "VOLREN", "VOLUME RENDERING", "RENDERED", "SSD", "CSA 3D", "RADIAL MIP"),
        )
    ),
    ImageKind.MAP: frozenset(
        (
            *("MAP", "QUANTITY", "STD DEVIATION", "DIVISION"),
            *("ADC", "EADC", "EXP", "FA", "COLFA", "TENSOR", "TENSOR B0", "MD", "AD", "RD"),
            *("CBF", "CBV", "MTT", "TTP", "TMAX", "TTD", "PBP", "GBP", "RELCBF", "RELCBV", "RELMTT"),
            *("RCBF", "RCBV", "KTRANS", "KEP", "VE", "VP", "IAUC", "R2", "R2 STAR", "R2*"),
            *("FF", "FAT FRACTION", "WATER FRACTION", "PDFF", "FIELDMAP"),
            *("P", "PHASE", "R", "REAL", "I", "IMAGINARY", "VELOCITY"),
        )
    ),
    ImageKind.SUBTRACTION: frozenset(("SUBTRACTION", "SUBTRACTED", "SUBTRACT", "SUB")),
    ImageKind.REFORMATTED: frozenset(
        ("MPR", "CSA MPR", "MPR CURVED", "CURVED MPR", "CPR", "REFORMATTED", "RESAMPLED", "MPR THICK")
    ),
}
_LOCALIZER_DESCRIPTION = re.compile(
    r"(?<![a-z])(locali[sz]ers?|lokali[sz]er|loc|scouts?|topograms?|surview|scanogram|survey)(?![a-z])", re.I
)
_ADMINISTERED = "ContrastBolusAgentAdministered"
_NO_AGENT = frozenset(("NO", "NONE", "N", "N/A", "NA", "NIL", "0", "WITHOUT", "NO CONTRAST", "NON CONTRAST"))
# Part of Manufacturer (0008,0070) -> the name that people use.
_VENDORS = (
    (r"\bge\b|general electric", "GE"),
    (r"siemens", "Siemens"),
    (r"philips|\badac\b|\bpicker\b|marconi", "Philips"),
    (r"toshiba|canon", "Canon"),
    (r"hitachi|fuji", "Fujifilm"),
    (r"\buih\b|united.?imaging", "United Imaging"),
    (r"agfa", "Agfa"),
    (r"bruker", "Bruker"),
    (r"esaote", "Esaote"),
    (r"hologic", "Hologic"),
    (r"hyperfine", "Hyperfine"),
    (r"mediso", "Mediso"),
    (r"neusoft", "Neusoft"),
    (r"samsung|neurologica", "Samsung"),
    (r"shimadzu", "Shimadzu"),
    (r"varian", "Varian"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one stack is. Texts are "" and numbers None where the header does not say it."""

    stack: str  # name of the stack; "" where it is the only one of its series
    stacks: int  # in the series
    modality: str
    kind: ImageKind
    kind_because: str  # what says so; "" for an image
    is_derived: bool  # Image Type value 1 is DERIVED; says nothing of the kind
    plane: Plane
    obliquity_deg: float  # angle between the normal and the nearest axis of the patient, 0 to 54.7
    slices: int  # received ones
    rows: int
    columns: int
    slice_spacing_mm: float
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    slice_thickness_mm: float | None
    extent_mm: float  # longest edge of the volume
    body_part: str
    vendor: str
    has_contrast: bool
    echo_time_ms: float | None
    b_value: float | None  # s/mm²
    phase: int | None  # Temporal Position Index or Identifier
    missing_slices: int  # the most in one gap
    remarks: tuple[str, ...]  # what is not regular
    is_multi_frame: bool

    @property
    def in_words(self) -> str:
        """One line for people."""
        return ", ".join(part for part in (*self._what(), *self._how(), *self.remarks) if part)

    def _what(self) -> Iterable[str]:
        yield self.modality or "no modality"
        tilt = f" ({self.obliquity_deg:.0f}° off)" if self.obliquity_deg >= 1 else ""
        yield f"{self.plane}{tilt}"
        yield f"{self.slices} slice{'' if self.slices == 1 else 's'} of {self.rows}×{self.columns}"
        rows_mm, columns_mm = self.pixel_spacing_mm
        yield f"{self.slice_spacing_mm:.4g}×{rows_mm:.4g}×{columns_mm:.4g} mm"
        yield f"{self.kind}" + (f" ({self.kind_because})" if self.kind_because else "")

    def _how(self) -> Iterable[str]:
        yield self.body_part
        yield "contrast agent" if self.has_contrast else ""
        yield "" if self.echo_time_ms is None else f"echo time {self.echo_time_ms:.4g} ms"
        yield "" if self.b_value is None else f"b-value {self.b_value:.4g} s/mm²"
        yield "" if self.phase is None else f"phase {self.phase}"
        yield self.vendor
        yield "multi-frame" if self.is_multi_frame else ""


def facts_of(stack: Stack, *, stacks: int = 1) -> Facts:
    """Read what a stack is; its first frame stands for what slices have in common.

    Parameters
    ----------
    stacks
        How many the series holds.
    """
    first = stack.frames[0]
    said = first.facts
    kind, because = _kind(first, said.image_type)
    plane, obliquity_deg = plane_of(stack.grid.normal)
    edges = np.array(stack.grid.shape) * np.array(stack.grid.spacing_mm)
    rows, columns = first.size
    slice_mm, rows_mm, columns_mm = (round(float(mm), _DECIMALS) for mm in stack.grid.spacing_mm)
    return Facts(
        stack=stack.name,
        stacks=stacks,
        modality=attributes.text(first.ds, "Modality").upper(),
        kind=kind,
        kind_because=because,
        is_derived=said.image_type[:1] == ("DERIVED",),
        plane=plane,
        obliquity_deg=obliquity_deg,
        slices=len(stack.frames),
        rows=rows,
        columns=columns,
        slice_spacing_mm=slice_mm,
        pixel_spacing_mm=(rows_mm, columns_mm),
        slice_thickness_mm=first.slice_thickness_mm,
        extent_mm=round(float(edges.max()), _DECIMALS),
        body_part=_body_part(first),
        vendor=vendor_of(attributes.text(first.ds, "Manufacturer")),
        has_contrast=_has_contrast(first),
        echo_time_ms=said.echo_time_ms,
        b_value=said.b_value,
        phase=said.temporal_position,
        missing_slices=stack.missing_slices,
        remarks=stack.remarks,
        is_multi_frame=first.is_multi_frame,
    )


def holder(frame: SourceFrame, keyword: str) -> Dataset:
    """Find the part of an instance that holds an attribute of a frame; the instance itself when none does.

    A multi-frame image keeps most attributes in functional groups: those of the frame, else those shared by
    all frames (PS3.3 C.7.6.16); each group is a sequence of one item.
    """
    if keyword in frame.ds:
        return frame.ds
    for group in frame.groups:
        for name in group.dir():
            held = [item for item in attributes.items(group, name) if keyword in item]
            if held:
                return held[0]
    return frame.ds


def plane_of(normal: FloatArray) -> tuple[Plane, float]:
    """Name the plane of slices by their normal (LPS), and the angle to the nearest axis in degrees."""
    cosines = np.abs(normal) / np.linalg.norm(normal)
    nearest = int(cosines.argmax())
    cosine = min(float(cosines[nearest]), 1.0)
    plane = _PLANES[nearest] if cosine >= OBLIQUE_COSINE else Plane.OBLIQUE
    return plane, round(math.degrees(math.acos(cosine)), 1)


def vendor_of(manufacturer: str) -> str:
    """Give the short name of a maker: "GE" for "GE MEDICAL SYSTEMS"; unknown ones as they stand."""
    named = (name for part, name in _VENDORS if re.search(part, manufacturer, re.IGNORECASE))
    return next(named, manufacturer)


def _kind(frame: SourceFrame, image_type: Sequence[str]) -> tuple[ImageKind, str]:
    """What an image shows, and what says so.

    Value 1 of Image Type is not asked: DERIVED is written on ordinary slices too, after any filter.
    """
    if _SECONDARY_CAPTURE.fullmatch(attributes.text(frame.ds, "SOPClassUID")):
        return ImageKind.SCREEN, "Secondary Capture"
    values = {value: value.replace("_", " ") for value in image_type[2:]}
    for kind, words in _WORDS.items():
        for value, spoken in values.items():
            if spoken in words or (kind is ImageKind.MAP and spoken.endswith(" MAP")):
                return kind, f"Image Type has {value}"
    named = _LOCALIZER_DESCRIPTION.search(attributes.text(frame.ds, "SeriesDescription").replace("_", " "))
    if named:
        return ImageKind.LOCALIZER, f"Series Description has {named[0]}"
    return ImageKind.IMAGE, ""


def _body_part(frame: SourceFrame) -> str:
    """Body Part Examined, else the meaning of the coded Anatomic Region (PS3.3 10.5)."""
    named = attributes.text(frame.ds, "BodyPartExamined")
    regions = attributes.items(holder(frame, "AnatomicRegionSequence"), "AnatomicRegionSequence")
    return named or next((attributes.text(region, "CodeMeaning") for region in regions), "")


def _has_contrast(frame: SourceFrame) -> bool:
    """Answer whether the header names a contrast agent; people also write there that there was none."""
    if attributes.text(holder(frame, _ADMINISTERED), _ADMINISTERED) == "NO":  # before the injection
        return False
    agents = attributes.texts(frame.ds, "ContrastBolusAgent")
    if any(agent.upper() not in _NO_AGENT for agent in agents):
        return True
    return bool(attributes.items(frame.ds, "ContrastBolusAgentSequence"))
