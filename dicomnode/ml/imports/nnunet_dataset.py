"""``dataset.json`` of nnU-Net v2: channels, and the classes that the outputs of the network stand for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.foreign import checked, modality_of, read_file

DATASET_FILE = "dataset.json"
_MOST_CLASSES = 257  # 255, background, and what is ignored
_BACKGROUND = "background"
_IGNORED = "ignore"  # voxels that nobody labelled; no output of the network


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What a model was trained to find, and in what."""

    channels: tuple[str, ...]
    outputs: int  # of the network
    class_names: Mapping[int, str]  # class 1, 2, ...
    values: tuple[int, ...]  # that class 1, 2, ... has in the label maps of nnU-Net
    region_classes: tuple[int, ...]  # as in a plan
    licence: str

    @property
    def modalities(self) -> tuple[str, ...]:
        """DICOM modality of the channel, where its name tells."""
        return modality_of(self.channels[0]) if self.channels else ()


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None  # before version 2.0
    labels: dict[str, int | list[int]] = Field(max_length=_MOST_CLASSES)
    regions_class_order: list[int] | None = Field(default=None, max_length=_MOST_CLASSES)
    licence: str = ""
    license: str = ""


_FILE = TypeAdapter(_File)


def read_dataset(folder: Path) -> DataSet:
    """Read ``dataset.json`` of a trained model.

    Raises
    ------
    ModelFormatError
        It is missing or malformed, or its labels contradict each other.
    """
    file = checked(_FILE, read_file(folder / DATASET_FILE), what=DATASET_FILE)
    labels = {name: value for name, value in file.labels.items() if name != _IGNORED}
    if labels.get(_BACKGROUND) != 0:
        raise ModelFormatError(f"{DATASET_FILE} names no background of the value 0 among its labels")
    is_by_region = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    read = _regions if is_by_region else _classes
    outputs, names, values, region_classes = read(labels, file.regions_class_order or [])
    if not names or not set(range(1, 256)) >= set(values):
        raise ModelFormatError(f"{DATASET_FILE} has labels of the values {values}; 1 to 255 are expected")
    return DataSet(
        channels=tuple((file.channel_names or file.modality or {}).values()),
        outputs=outputs,
        class_names=names,
        values=values,
        region_classes=region_classes,
        licence=file.licence or file.license,
    )


_Classes = tuple[int, Mapping[int, str], tuple[int, ...], tuple[int, ...]]


def _classes(labels: Mapping[str, int | list[int]], _order: list[int]) -> _Classes:
    """Outputs that exclude each other: they stand in the order of the values, background first."""
    numbers = [(name, value[0] if isinstance(value, list) else value) for name, value in labels.items()]
    values = tuple(sorted({number for _, number in numbers} - {0}))
    names = _named((values.index(number) + 1, name) for name, number in numbers if number)
    return len(values) + 1, names, values, ()


def _regions(labels: Mapping[str, int | list[int]], order: list[int]) -> _Classes:
    """Outputs that are regions: they stand as they are written, and paint the values of ``order``."""
    regions = [name for name, value in labels.items() if value not in (0, [0])]
    if len(order) != len(regions):
        raise ModelFormatError(
            f"{DATASET_FILE} has {len(regions)} regions and {len(order)} entries in regions_class_order"
        )
    values = tuple(sorted(set(order)))
    painted = tuple(values.index(value) + 1 for value in order)
    return len(regions), _named(zip(painted, regions, strict=True)), values, painted


def _named(pairs: Iterable[tuple[int, str]]) -> Mapping[int, str]:
    names: dict[int, str] = {}
    for index, name in pairs:
        names[index] = f"{names[index]} or {name}" if index in names else name
    return names
