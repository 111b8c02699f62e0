"""What the pixel values of a series measure and in which unit, as coded concepts (PS3.16 CID 7180, 7181)."""

from dataclasses import dataclass

from dicomnode.domain import Code, ImageKind
from dicomnode.imaging import attributes
from dicomnode.imaging.images.facts import facts_of
from dicomnode.imaging.images.frame_facts import FrameHeader
from dicomnode.imaging.images.stacks import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What a number measures, and its unit."""

    name: Code
    unit: Code


def _dcm(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="DCM", meaning=meaning)


def _ucum(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="UCUM", meaning=meaning)


_ATTENUATION = _dcm("112031", "Attenuation Coefficient")
_SIGNAL = _dcm("110852", "MR signal intensity")
_ACTIVITY = _dcm("110821", "Nuclear Medicine Tomographic Activity")
_QUANTITY = Code(value="246205007", scheme="SCT", meaning="Quantity")
_NO_UNITS = _ucum("1", "no units")
_ARBITRARY = _ucum("[arb'U]", "arbitrary unit")

_CT = {
    "HU": Quantity(name=_ATTENUATION, unit=_ucum("[hnsf'U]", "Hounsfield unit")),
    "HU_MOD": Quantity(name=_ATTENUATION, unit=_ARBITRARY),
    "MGML": Quantity(name=_QUANTITY, unit=_ucum("mg/ml", "mg/ml")),
    "PCT": Quantity(name=_QUANTITY, unit=_ucum("%", "Percent")),
}
"""By Rescale Type (PS3.3 C.11.1.1.2)."""

_PET = {
    "BQML": Quantity(name=_ACTIVITY, unit=_ucum("Bq/ml", "Becquerels/milliliter")),
    "CNTS": Quantity(name=_ACTIVITY, unit=_ucum("{counts}", "Counts")),
    "CPS": Quantity(name=_ACTIVITY, unit=_ucum("{counts}/s", "Counts per second")),
    "PROPCNTS": Quantity(name=_ACTIVITY, unit=_ucum("{propcounts}", "Proportional to counts")),
    "PROPCPS": Quantity(name=_ACTIVITY, unit=_ucum("{propcounts}/s", "Proportional to counts per second")),
    "PCNT": Quantity(name=_QUANTITY, unit=_ucum("%", "Percent")),
    "1CM": Quantity(name=_QUANTITY, unit=_ucum("/cm", "/Centimeter")),
    "CM2": Quantity(name=_QUANTITY, unit=_ucum("cm2", "Centimeter**2")),
    "CM2ML": Quantity(name=_QUANTITY, unit=_ucum("cm2/ml", "Centimeter**2/milliliter")),
    "MLG": Quantity(name=_QUANTITY, unit=_ucum("ml/g", "Milliliter/gram")),
    "MLMING": Quantity(name=_QUANTITY, unit=_ucum("ml/min/g", "Milliliter/minute/gram")),
    "MGMINML": Quantity(name=_QUANTITY, unit=_ucum("mg/min/ml", "Milligrams/minute/milliliter")),
    "UMOLML": Quantity(name=_QUANTITY, unit=_ucum("umol/ml", "Micromole/milliliter")),
    "UMOLMINML": Quantity(name=_QUANTITY, unit=_ucum("umol/min/ml", "Micromole/minute/milliliter")),
    "NONE": Quantity(name=_QUANTITY, unit=_NO_UNITS),
}
"""By Units (PS3.3 C.8.9.1.1.3)."""

_UPTAKE = {
    ("GML", "BW"): Quantity(
        name=_dcm("126401", "SUVbw"), unit=_ucum("g/ml{SUVbw}", "Standardized Uptake Value body weight")
    ),
    ("GML", "LBM"): Quantity(
        name=_dcm("126402", "SUVlbm"),
        unit=_ucum("g/ml{SUVlbm}", "Standardized Uptake Value lean body mass (James)"),
    ),
    ("GML", "LBMJAMES128"): Quantity(
        name=_dcm("126406", "SUVlbm(James128)"),
        unit=_ucum(
            "g/ml{SUVlbm(James128)}", "Standardized Uptake Value lean body mass (James 128 multiplier)"
        ),
    ),
    ("GML", "LBMJANMA"): Quantity(
        name=_dcm("126405", "SUVlbm(Janma)"),
        unit=_ucum("g/ml{SUVlbm(Janma)}", "Standardized Uptake Value lean body mass (Janma)"),
    ),
    ("GML", "IBW"): Quantity(
        name=_dcm("126404", "SUVibw"),
        unit=_ucum("g/ml{SUVibw}", "Standardized Uptake Value ideal body weight"),
    ),
    ("CM2ML", "BSA"): Quantity(
        name=_dcm("126403", "SUVbsa"),
        unit=_ucum("cm2/ml{SUVbsa}", "Standardized Uptake Value body surface area"),
    ),
}
"""By Units and SUV Type (PS3.3 C.8.9.1.1.3)."""

_UNKNOWN = Quantity(name=_QUANTITY, unit=_ARBITRARY)


def pixel_quantity(stack: Stack) -> Quantity:
    """Tell what the values of a stack's planes measure; a quantity in arbitrary units where nothing says it.

    The unit of computed maps (ADC, T2, perfusion) is said by no attribute that holds across vendors.
    """
    header = stack.frames[0].header
    modality = attributes.text(header.ds, "Modality")
    is_map = facts_of(stack).kind is ImageKind.MAP
    if modality == "CT":
        return _of_ct(header, is_map=is_map)
    if modality == "MR" and not is_map:
        return Quantity(name=_SIGNAL, unit=_NO_UNITS)
    return _of_pet(header) if modality == "PT" else _UNKNOWN


def _of_ct(header: FrameHeader, *, is_map: bool) -> Quantity:
    spoken = header.text("PixelValueTransformationSequence", "RescaleType")
    if spoken is None:
        return _UNKNOWN if is_map else _CT["HU"]
    return _CT.get(spoken.upper(), _UNKNOWN)


def _of_pet(header: FrameHeader) -> Quantity:
    """Read Units; a multi-frame image has none, and says it as the Rescale Type of the same words."""
    units = header.text("", "Units") or header.text("PixelValueTransformationSequence", "RescaleType") or ""
    suv_type = header.text("", "SUVType") or ("BW" if units == "GML" else "")
    return _UPTAKE.get((units, suv_type)) or _PET.get(units, _UNKNOWN)
