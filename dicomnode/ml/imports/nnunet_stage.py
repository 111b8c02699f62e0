"""One configuration of nnU-Net as a stage of ours: intensities, grids, patch and mirroring."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import JsonValue, TypeAdapter, ValidationError

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.foreign import checked
from dicomnode.ml.imports.nnunet_plans import DEFAULT_RESAMPLING, PLANS_FILE, Configuration, Intensities
from dicomnode.ml.model.architecture import UNetPlan
from dicomnode.ml.model.plan import (
    AsItIs,
    ClipAndStandardise,
    FixedRange,
    ImageRange,
    Interpolation,
    Normalisation,
    Order,
    SpacingMm,
    Stage,
    ZScore,
    plan_error,
)

Separate = Literal["never", "auto", "always"]

_SMALLEST_DEVIATION = 1e-8
_TORCH_RESAMPLING = "resample_torch_fornnunet"
_NO_RESAMPLING = frozenset({"no_resampling", "no_resampling_hack"})
_ANISOTROPY = ("separate_z_anisotropy_threshold", 3)  # of nnU-Net, and the one of our own resampling
_TILE_OVERLAP = 0.5  # nnU-Net steps by half a patch
_SPLINE_OPTIONS = frozenset({"is_seg", "order", "order_z", "force_separate_z"})
_TORCH_OPTIONS = frozenset(
    {"is_seg", "force_separate_z", "memefficient_seg_resampling", "num_threads", "device", "mode"}
    | {"aniso_axis_mode"}
)
_SEPARATE: Mapping[object, Separate] = MappingProxyType({None: "auto", True: "always", False: "never"})
_MODES: Mapping[object, Order] = MappingProxyType({"linear": 1, "nearest-exact": 0})
_INTERPOLATION = TypeAdapter(Interpolation)


def stage(
    name: str,
    found: Configuration,
    network: UNetPlan,
    *,
    intensities: Mapping[str, Intensities],
    mirror_axes: tuple[int, ...],
    members: int,
) -> Stage:
    """Describe one pass over the image.

    Parameters
    ----------
    intensities
        Of the foreground, by channel.
    mirror_axes
        Of the network as nnU-Net counts them: 0 is the rows of a two-dimensional one.
    members
        Folds whose scores are averaged.

    Raises
    ------
    ModelFormatError
        An unknown way to normalise or resample, or sizes that no plan may have.
    """
    flat = 3 - network.dimensions
    if not len(found.spacing) == len(found.patch_size) == network.dimensions:
        raise ModelFormatError(f"spacing, patch and network of {name} in {PLANS_FILE} differ in dimensions")
    image = interpolation(found.resampling_fn_data, found.resampling_fn_data_kwargs)
    score = interpolation(found.resampling_fn_probabilities, found.resampling_fn_probabilities_kwargs)
    patch = [1] * flat + found.patch_size
    try:
        return Stage(
            name="".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in name),
            spacing_mm=(None, None, None) if image is None else _spacing(found.spacing, flat),
            patch_shape=(patch[0], patch[1], patch[2]),
            normalisation=normalisation(found, intensities),
            image_interpolation=image or Interpolation(),
            score_interpolation=score or Interpolation(),
            network=network,
            mirror_axes=tuple(sorted(axis + flat for axis in mirror_axes)),
            overlap=_TILE_OVERLAP,
            members=members,
        )
    except ValidationError as error:
        raise plan_error(error) from error


def normalisation(found: Configuration, intensities: Mapping[str, Intensities]) -> Normalisation:
    """Name what happens to the intensities of the first channel."""
    scheme = found.normalization_schemes[0]
    match scheme:
        case "CTNormalization":
            return _ct(intensities)
        case "ZScoreNormalization":
            return ZScore(over="nonzero_filled" if found.use_mask_for_norm[0] else "image")
        case "NoNormalization":
            return AsItIs()
        case "RescaleTo01Normalization":
            return ImageRange()
        case "RGBTo01Normalization":
            return FixedRange(source=(0.0, 255.0))
    raise ModelFormatError(f"the intensities of this model are changed by {scheme}, which is not known here")


def interpolation(function: str, options: Mapping[str, JsonValue]) -> Interpolation | None:
    """Describe how values are brought to another grid; None where they stay on theirs."""
    if function in _NO_RESAMPLING:
        return None
    if function == DEFAULT_RESAMPLING:
        return _spline(options)
    if function == _TORCH_RESAMPLING:
        return _torch(options)
    raise ModelFormatError(
        f"the images of this model are resampled by {function}, which is not known here; known are "
        f"{DEFAULT_RESAMPLING}, {_TORCH_RESAMPLING} and {', '.join(sorted(_NO_RESAMPLING))}"
    )


def _ct(intensities: Mapping[str, Intensities]) -> ClipAndStandardise:
    if "0" not in intensities:
        raise ModelFormatError(f"{PLANS_FILE} lacks the intensities that CTNormalization needs")
    known = intensities["0"]
    return ClipAndStandardise(
        lower=known.percentile_00_5,
        upper=known.percentile_99_5,
        mean=known.mean,
        deviation=max(known.std, _SMALLEST_DEVIATION),
    )


def _spline(options: Mapping[str, JsonValue]) -> Interpolation:
    _check_options(DEFAULT_RESAMPLING, options, known=_SPLINE_OPTIONS)
    values = {
        "order": options.get("order", 3),
        "separate": _separate(options.get("force_separate_z", False)),
        "order_across": options.get("order_z", 0),
    }
    return checked(_INTERPOLATION, values, what=f"the options of {DEFAULT_RESAMPLING} in {PLANS_FILE}")


def _torch(options: Mapping[str, JsonValue]) -> Interpolation:
    _check_options(_TORCH_RESAMPLING, options, known=_TORCH_OPTIONS)
    mode, across = options.get("mode", "linear"), options.get("aniso_axis_mode", "nearest-exact")
    if mode != "linear" or across not in _MODES:
        raise ModelFormatError(
            f"{_TORCH_RESAMPLING} with mode {mode!r} and aniso_axis_mode {across!r} is not known here"
        )
    separate = _separate(options.get("force_separate_z"))
    return Interpolation(order=1, separate=separate, order_across=_MODES[across])


def _check_options(function: str, options: Mapping[str, JsonValue], *, known: frozenset[str]) -> None:
    for key, value in options.items():
        if key not in known and (key, value) != _ANISOTROPY:
            raise ModelFormatError(
                f"{function} has {key} = {value!r} in {PLANS_FILE}, which is not known here"
            )


def _separate(value: JsonValue) -> Separate:
    if value is not None and not isinstance(value, bool):
        raise ModelFormatError(
            f"force_separate_z is {value!r} in {PLANS_FILE}; true, false or null is expected"
        )
    return _SEPARATE[value]


def _spacing(values: list[float], flat: int) -> SpacingMm:
    triple = [None] * flat + values
    return triple[0], triple[1], triple[2]
