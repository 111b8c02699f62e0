"""A received series as a volume in modality units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID, CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from dicomnode.errors import GeometryError, UnsupportedSeriesError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.frame_facts import FrameHeader, frame_type, siemens_mosaic_tiles
from dicomnode.imaging.images.frames import MULTI_FRAME_SOP_CLASSES, is_multi_frame
from dicomnode.imaging.images.pixels import VOLUME_LIMIT_BYTES, decode_planes
from dicomnode.imaging.images.regrid import labels_to_planes, planes_to_image
from dicomnode.imaging.images.stacks import Stack, only_stack

SUPPORTED_SOP_CLASSES = MULTI_FRAME_SOP_CLASSES | {
    CTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
}


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
        return labels_to_planes(labels, self.stack)


def to_volume(datasets: Sequence[Dataset], *, maximum_missing: int = 0) -> SeriesVolume:
    """Make one volume of the CT, MR or PET images of a series that holds one stack.

    Parameters
    ----------
    datasets
        Single-frame or multi-frame images of one series in any order, read from Part 10 (with file meta
        information); left unchanged.
    maximum_missing
        How many slices may be missing in one gap; those are interpolated for the model. Unevenly spaced
        slices count as one.

    Raises
    ------
    UnsupportedSeriesError
        Not CT, MR or PET; a localizer or mosaic, colour or without pixels; several stacks.
    GeometryError
        The slices do not form one volume; see `stack_volume` and `stacks.read_stacks`.
    UnreadableInstanceError
        The pixels of a slice cannot be decoded; the message names its SOP Instance UID.
    """
    if not datasets:
        raise GeometryError("no images: at least one slice was expected")
    return stack_volume(only_stack(supported_images(datasets)), maximum_missing=maximum_missing)


def stack_volume(stack: Stack, *, maximum_missing: int = 0) -> SeriesVolume:
    """Decode the pixels of one stack, and resample them where its planes are not regular; see `to_volume`.

    Raises
    ------
    GeometryError
        More slices are missing in a gap than allowed, or the planes have no regular spacing; the message
        names the gap, its position, the expected spacing and the UID of the slice before it.
    """
    _check_gaps(stack, maximum_missing)
    planes = decode_planes(stack.frames, shape=stack.shape)
    grid = stack.grid
    image = Volume(
        planes_to_image(planes, stack),
        grid.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=grid.frame_of_reference_uid,
    )
    return SeriesVolume(image=image, planes=planes, stack=stack)


def _check_gaps(stack: Stack, maximum_missing: int) -> None:
    defects = [stack.refusal] if stack.refusal else []
    if stack.missing_slices > maximum_missing:
        before = stack.frames[int(np.diff(stack.offsets[:, 0]).argmax())]
        allowed = f"{maximum_missing} missing slices in a gap are allowed" if maximum_missing else ""
        defects += [*stack.remarks, *filter(None, [allowed]), f"the widest gap follows {before.name}"]
    size_bytes = 4 * math.prod(stack.grid.shape)
    if size_bytes > VOLUME_LIMIT_BYTES:
        defects.append(f"a grid of {stack.grid.shape} voxels would take {size_bytes / 1024**3:.1f} GiB")
    if defects:
        named = f" ({stack.name})" if stack.name else ""
        raise GeometryError(f"series {stack.series_instance_uid}{named}: {'; '.join(defects)}")


def supported_images(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Give the images of a series that can be slices of a volume, in their order; pixels are not decoded.

    Scanners put scouts, screen captures and reports beside the slices. Localizers and objects of other
    classes are therefore left out where there is something else.

    Raises
    ------
    UnsupportedSeriesError
        Nothing else is there, or an image that is no localizer is of a kind that is not read.
    """
    slices = [ds for ds in datasets if not (_other_class(ds) or _localizer(ds))]
    for ds in slices or datasets:
        reason = _other_class(ds) or _other_pixels(ds) or _other_layout(ds)
        if reason:
            raise UnsupportedSeriesError(
                f"series {attributes.text(ds, 'SeriesInstanceUID')}: {reason} (instance {_instance(ds)})"
            )
    return slices


def _other_class(ds: Dataset) -> str | None:
    sop_class = UID(attributes.text(ds, "SOPClassUID"))
    if sop_class in SUPPORTED_SOP_CLASSES:
        return None
    colour = _colour(ds)
    return f"SOP class {sop_class.name or '(missing)'} is not CT, MR or PET Image Storage" + (
        f", and has {colour}" if colour else ""
    )


def _other_pixels(ds: Dataset) -> str | None:
    if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
        return "parametric maps of floating-point pixels are not read"
    if "PixelData" not in ds:
        return "no pixel data"
    return _colour(ds)


def _colour(ds: Dataset) -> str | None:
    photometric = attributes.text(ds, "PhotometricInterpretation")
    if attributes.integer(ds, "SamplesPerPixel") in {1, None} and photometric.startswith("MONOCHROME"):
        return None
    if "PixelData" not in ds and not photometric:
        return None
    return f"colour images ({photometric or 'no photometric interpretation'})"


def _other_layout(ds: Dataset) -> str | None:
    if "MOSAIC" in _image_type(ds) or siemens_mosaic_tiles(ds) > 1:
        return "a mosaic shows many slices in one image; send the unpacked or enhanced form"
    if reason := _localizer(ds):
        return reason
    if is_multi_frame(ds) and not attributes.items(ds, "PerFrameFunctionalGroupsSequence"):
        frames = attributes.text(ds, "NumberOfFrames") or "no Number of Frames"
        return f"{frames} frames without functional groups that say where they lie"
    return None


def _localizer(ds: Dataset) -> str | None:
    image_type = _image_type(ds)
    if "LOCALIZER" in image_type or _has_localizers_only(ds, image_type):
        return "a localizer is not a volume"
    return None


def _image_type(ds: Dataset) -> list[str]:
    return [value.upper() for value in attributes.texts(ds, "ImageType")]


def _has_localizers_only(ds: Dataset, image_type: list[str]) -> bool:
    """Read the type of every frame where that of the image does not say it (PS3.3 C.8.16.1)."""
    if not is_multi_frame(ds) or not {"MIXED"}.issuperset(image_type[2:3]):
        return False
    groups = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
    shared = tuple(attributes.items(ds, "SharedFunctionalGroupsSequence")[:1])
    return all("LOCALIZER" in frame_type(FrameHeader(ds, (own, *shared))) for own in groups) and bool(groups)


def _instance(ds: Dataset) -> str:
    return attributes.text(ds, "SOPInstanceUID") or "(no UID)"
