"""A received series as a volume in modality units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from dicomnode.errors import GeometryError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging import attributes
from dicomnode.imaging.stacks import Stack, only_stack

SUPPORTED_SOP_CLASSES = frozenset({CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage})
_DECODING_ERRORS = (*attributes.UNREADABLE, IndexError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesVolume:
    """An image for a model, and the planes that it was made of.

    `image` is float32 in modality units (HU for CT), axes (slice, row, column), LPS, on `stack.grid`.
    `planes` are the received planes in the same units, (frame, row, column), in the order of
    `stack.frames`; of a regular stack they are the image itself, not a copy.
    """

    image: Volume
    planes: NDArray[np.float32]
    stack: Stack

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """The received instances, each once."""
        return self.stack.datasets

    def on_planes(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring labels from the image's grid to the received planes; of a regular stack no copy is made."""
        return labels


def to_volume(datasets: Sequence[Dataset]) -> SeriesVolume:
    """Make one volume of the CT, MR or PET images of a series.

    Slices are ordered along the normal of the image plane, ascending; slope and intercept are
    applied slice by slice (they differ between the slices of a PET series, PS3.3 C.8.9.4).

    Parameters
    ----------
    datasets
        Images of one series in any order, read from Part 10 (with file meta information);
        left unchanged.

    Raises
    ------
    UnsupportedSeriesError
        Not CT, MR or PET; enhanced multi-frame, localizer, colour or without pixels.
    GeometryError
        The slices do not form one regular volume (see `geometry.read_grid`).
    UnreadableInstanceError
        The pixels of a slice cannot be decoded; the message names its SOP Instance UID.
    """
    if not datasets:
        raise GeometryError("no images: at least one slice was expected")
    check_supported(datasets)
    return stack_volume(only_stack(datasets))


def stack_volume(stack: Stack) -> SeriesVolume:
    """Decode the pixels of one stack; see `to_volume`."""
    planes: NDArray[np.float32] = np.empty(stack.shape, np.float32)
    for index, frame in enumerate(stack.frames):
        planes[index] = _modality_values(frame.ds, stack.shape[1:])
    grid = stack.grid
    image = Volume(
        planes, grid.affine, coordinate_system="PATIENT", frame_of_reference_uid=grid.frame_of_reference_uid
    )
    return SeriesVolume(image=image, planes=planes, stack=stack)


def check_supported(datasets: Sequence[Dataset]) -> None:
    """Raise `UnsupportedSeriesError` for a series of a kind that is not read; pixels are not decoded."""
    for ds in datasets:
        reason = _unsupported_reason(ds)
        if reason:
            raise UnsupportedSeriesError(
                f"series {attributes.text(ds, 'SeriesInstanceUID')}: {reason} (instance {_instance(ds)})"
            )


def _unsupported_reason(ds: Dataset) -> str | None:
    sop_class = UID(attributes.text(ds, "SOPClassUID"))
    if (attributes.integer(ds, "NumberOfFrames") or 1) > 1 or "Enhanced" in sop_class.name:
        return "enhanced multi-frame images are not read yet; send the classic single-frame form"
    if sop_class not in SUPPORTED_SOP_CLASSES:
        return f"SOP class {sop_class.name or '(missing)'} is not CT, MR or PET Image Storage"
    if "LOCALIZER" in [value.upper() for value in attributes.texts(ds, "ImageType")]:
        return "a localizer is not a volume"
    photometric = attributes.text(ds, "PhotometricInterpretation")
    if attributes.integer(ds, "SamplesPerPixel") not in {1, None} or not photometric.startswith("MONOCHROME"):
        return f"colour images ({photometric or 'no photometric interpretation'})"
    if "PixelData" not in ds:
        return "no pixel data"
    return None


def _instance(ds: Dataset) -> str:
    return attributes.text(ds, "SOPInstanceUID") or "(no UID)"


def _modality_values(ds: Dataset, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        values = np.asarray(apply_modality_lut(pixel_array(ds), ds), np.float32)
    except _DECODING_ERRORS as error:
        raise UnreadableInstanceError(
            f"the pixels of instance {_instance(ds)} cannot be decoded: {error}"
        ) from error
    if values.shape != shape:
        raise UnreadableInstanceError(
            f"instance {_instance(ds)} decodes to {values.shape}, {shape} was expected"
        )
    return values
