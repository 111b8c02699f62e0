"""``dataset.json`` of a raw folder: what the label values mean, as nnU-Net v2 or the Decathlon says it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicomnode.errors import InputError

_BACKGROUND = "background"
_IGNORE = "ignore"
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "T1": "MR", "T2": "MR", "FLAIR": "MR", "PET": "PT"}
_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
    """What a raw folder says of its labels."""

    names: tuple[tuple[int, str], ...]  # class index as in labels.toml, and what the folder calls it
    ignored: int | None  # value of voxels whose truth is unknown
    regions: tuple[tuple[int, ...], ...]  # empty: labels exclude each other; else the values of each region
    region_classes: tuple[int, ...]  # the class that each region paints
    modality: str | None  # as DICOM calls it, where the channel is named so


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    labels: dict[str, int | str | tuple[int, ...]]
    regions_class_order: tuple[int, ...] = ()
    channel_names: dict[str, str] = Field(default_factory=dict)
    modality: dict[str, str] = Field(default_factory=dict)  # the Decathlon's word for the channels
    file_ending: str = ".nii.gz"


def read_raw(path: Path, *, classes: int | None) -> RawDataset | None:
    """Read ``dataset.json``; None where there is none.

    Parameters
    ----------
    classes
        Classes that the model has, with background; None: those of the file.

    Raises
    ------
    InputError
        It cannot be read, or speaks of several channels, of files other than NIfTI, or of other classes than
        the model is to have.
    """
    if not path.is_file():
        return None
    try:
        file = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path} is wrong at {where}: {first['msg']}.") from error
    channels = file.channel_names or file.modality
    if len(channels) > 1:
        raise InputError(f"{path} names {len(channels)} channels; models here take one image of one channel.")
    if file.file_ending not in _ENDINGS:
        raise InputError(f"{path} says that files end in {file.file_ending}; only {_ENDINGS} are read.")
    modality = next((_MODALITIES.get(name.upper()) for name in channels.values()), None)
    values = _values_by_name(file.labels, path)
    raw = replace(_meaning(values, file.regions_class_order, path), modality=modality)
    _check_classes(raw, classes=len(raw.names) + 1 if classes is None else classes, path=path)
    return raw


def _values_by_name(
    labels: Mapping[str, int | str | tuple[int, ...]], path: Path
) -> dict[str, tuple[int, ...]]:
    """Turn both spellings, name to value and value to name, into name to values."""
    values: dict[str, tuple[int, ...]] = {}
    for key, meaning in labels.items():
        if isinstance(meaning, str) and key.isdigit():
            values[meaning] = (int(key),)
        elif isinstance(meaning, str):
            raise InputError(f"{path} maps the label {key!r} to {meaning!r}; a whole number is expected.")
        else:
            values[key] = meaning if isinstance(meaning, tuple) else (meaning,)
    return values


def _meaning(values: dict[str, tuple[int, ...]], order: tuple[int, ...], path: Path) -> RawDataset:
    ignored = values.pop(_IGNORE, None)
    labels = {name: found for name, found in values.items() if found != (0,) and name != _BACKGROUND}
    if any(len(found) > 1 for found in labels.values()):
        if len(order) != len(labels):
            raise InputError(
                f"{path} has {len(labels)} regions and {len(order)} entries in regions_class_order; "
                "one for each is expected."
            )
        regions, classes = tuple(labels.values()), order
    else:
        regions, classes = (), tuple(found[0] for found in labels.values())
    return RawDataset(
        names=tuple(sorted(zip(classes, labels, strict=True))),
        ignored=ignored[0] if ignored else None,
        regions=regions,
        region_classes=classes if regions else (),
        modality=None,
    )


def _check_classes(raw: RawDataset, *, classes: int, path: Path) -> None:
    found = [index for index, _ in raw.names]
    if found != list(range(1, classes)):
        raise InputError(
            f"{path} has the labels {found}; the label table of the model has 1 to {classes - 1}. "
            "Each class index must stand for the label of the same number."
        )
