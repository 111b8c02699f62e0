"""What a MONAI Bundle does to an image before its network, and to the scores after it, in our terms."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.bundle_config import Component, Value
from dicomnode.ml.imports.foreign import checked
from dicomnode.ml.model.plan import (
    AsItIs,
    FixedRange,
    ImageRange,
    Interpolation,
    Normalisation,
    Order,
    SpacingMm,
    ZScore,
    plan_error,
)

_CLEAR = frozenset(
    {"LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "CastToType", "ToDevice"}
    | {"SelectItems", "CopyItems", "SpatialPad", "Identity", "Invert", "SaveImage", "DeleteItems"}
)
"""Transforms that our own way of working does anyway, or that change nothing it sees."""
_OURS: Mapping[str, str] = MappingProxyType(dict(zip("RLAPSI", "RLAPHF", strict=True)))
_ORDERS: Mapping[Value, Order] = MappingProxyType(
    {"nearest": 0, "bilinear": 1, "trilinear": 1, 0: 0, 1: 1, 3: 3}
)
_FAR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What happens to an image before the network."""

    orientation: str | None = None  # where the axes of the array grow towards
    spacing_mm: SpacingMm = (None, None, None)
    interpolation: Interpolation = field(default_factory=Interpolation)
    normalisation: Normalisation | None = None
    crop_to_nonzero: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_resampled(self) -> bool:
        """Whether the image comes to another grid."""
        return any(value is not None for value in self.spacing_mm)


def preparation(transforms: Iterable[Component]) -> Preparation:
    """Follow the transforms of an image.

    Raises
    ------
    ModelFormatError
        A transform is not known here; the message names it.
    """
    found = Preparation()
    for transform in transforms:
        name = _plain_name(transform)
        if name in _STEPS:
            found = _STEPS[name](found, transform)
        elif name not in _CLEAR:
            raise ModelFormatError(
                f"the bundle prepares its images with {transform.name}, which is not known here; known are "
                f"{', '.join(sorted(_STEPS))}"
            )
    return found


def are_regions(transforms: Iterable[Component], *, outputs: int) -> bool:
    """Tell from what happens to the scores whether each output is a region of its own.

    Raises
    ------
    ModelFormatError
        A transform changes the result in a way that is not known here.
    """
    regions: bool | None = None
    for transform in transforms:
        name = _plain_name(transform)
        if name == "Activations" and _one(transform, "sigmoid") is True:
            regions = True
        elif name == "Activations" and _one(transform, "softmax") is True:
            regions = False
        elif name == "AsDiscrete":
            _check_threshold(transform)
            regions = False if _one(transform, "argmax") is True else regions
        elif name not in _CLEAR and name != "Activations":
            raise ModelFormatError(
                f"the bundle changes its result with {transform.name}, which is not known here. Take it out "
                "of the configuration if you want the model without"
            )
    return outputs == 1 if regions is None else regions


def _check_threshold(transform: Component) -> None:
    threshold = _one(transform, "threshold")
    if threshold is not None and threshold != 0.5:
        raise ModelFormatError(f"the bundle cuts its scores at {threshold}; known is 0.5 after a sigmoid")


def _plain_name(transform: Component) -> str:
    for suffix in ("Dict", "d", "D"):
        if transform.name.endswith(suffix) and not transform.name.endswith("Load"):
            return transform.name.removesuffix(suffix)
    return transform.name


def _one(transform: Component, key: str, otherwise: Value = None) -> Value:
    """Give an argument that may be one value or a list with one for each key; the first is the image's."""
    value = transform.literal(key, otherwise)
    return value[0] if isinstance(value, list) and value else value


def _orientation(found: Preparation, transform: Component) -> Preparation:
    codes = transform.literal("axcodes")
    if found.is_resampled:
        raise ModelFormatError(
            "the bundle resamples its images before it turns them; known is the other order"
        )
    if not isinstance(codes, str) or len(codes) != 3 or not set(codes) <= _OURS.keys():
        raise ModelFormatError(
            f"the bundle turns its images towards {codes!r}; letters such as RAS are expected"
        )
    return replace(found, orientation="".join(_OURS[code] for code in codes))


def _spacing(found: Preparation, transform: Component) -> Preparation:
    values = transform.literal("pixdim")
    sizes = [values] * 3 if isinstance(values, int | float) else values
    numbers = checked(_THREE, sizes, what=f"pixdim of {transform.name}")
    mode = _one(transform, "mode", "bilinear")
    if mode not in _ORDERS:
        raise ModelFormatError(f"the bundle resamples its images with {mode!r}; known are {[*_ORDERS]}")
    spacing = tuple(number if number > 0 else None for number in numbers)
    return replace(
        found,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        interpolation=Interpolation(order=_ORDERS[mode]),
    )


def _fixed_range(found: Preparation, transform: Component) -> Preparation:
    names = ("a_min", "a_max", "b_min", "b_max")
    low, high, first, last = (_number(transform, name) for name in names)
    clip = transform.literal("clip", otherwise=False)
    step = _range((low, high), target=(first, last), clip=clip is True)
    return _normalised(found, transform, step)


def _z_score(found: Preparation, transform: Component) -> Preparation:
    given = transform.literal("subtrahend"), transform.literal("divisor")
    if given == (None, None):
        nonzero = transform.literal("nonzero", otherwise=False) is True
        return _normalised(found, transform, ZScore(over="nonzero" if nonzero else "image"))
    mean, deviation = _number(transform, "subtrahend"), _number(transform, "divisor")
    return _normalised(found, transform, _range((mean, mean + deviation)))


def _range(
    source: tuple[float, float], *, target: tuple[float, float] = (0.0, 1.0), clip: bool = False
) -> FixedRange:
    try:
        return FixedRange(source=source, target=target, clip=clip)
    except ValidationError as error:
        raise plan_error(error) from error


def _image_range(found: Preparation, transform: Component) -> Preparation:
    given = tuple(transform.literal(key, value) for key, value in (("minv", 0.0), ("maxv", 1.0)))
    if given != (0.0, 1.0) or transform.literal("factor") is not None:
        raise ModelFormatError(f"{transform.name} of the bundle maps to {given}; known is 0 to 1")
    return _normalised(found, transform, ImageRange())


def _normalised(found: Preparation, transform: Component, step: Normalisation) -> Preparation:
    if found.normalisation is not None:
        raise ModelFormatError(
            f"the bundle changes intensities twice, the second time with {transform.name}; known is one step"
        )
    notes = found.notes
    if found.is_resampled:
        notes += (
            "The bundle changes intensities after resampling, dicomnode before: results are near, not equal.",
        )
    return replace(found, normalisation=step, notes=notes)


def _crop(found: Preparation, transform: Component) -> Preparation:
    if transform.literal("margin", otherwise=0) not in (0, [0, 0, 0]) or "select_fn" in transform.arguments:
        raise ModelFormatError(
            f"{transform.name} of the bundle has a margin or a rule of its own, not known here"
        )
    if found.normalisation is None:
        note = "The bundle crops to intensities above 0, dicomnode to those that are not 0."
        return replace(found, crop_to_nonzero=True, notes=(*found.notes, note))
    note = (
        f"{transform.name} of the bundle is left out: the whole image is searched, also where the bundle "
        "does not look."
    )
    return replace(found, notes=(*found.notes, note))


def _number(transform: Component, key: str) -> float:
    return checked(_NUMBER, transform.literal(key), what=f"{key} of {transform.name}")


_NUMBER: TypeAdapter[float] = TypeAdapter(float)
_THREE: TypeAdapter[tuple[float, float, float]] = TypeAdapter(tuple[float, float, float])
_STEPS: Mapping[str, Callable[[Preparation, Component], Preparation]] = MappingProxyType(
    {
        "Orientation": _orientation,
        "Spacing": _spacing,
        "ScaleIntensityRange": _fixed_range,
        "NormalizeIntensity": _z_score,
        "ScaleIntensity": _image_range,
        "CropForeground": _crop,
    }
)


def or_as_it_is(normalisation: Normalisation | None) -> Normalisation:
    """Name the normalisation of a bundle that has none."""
    return normalisation or AsItIs()
