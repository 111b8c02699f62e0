"""The augmentation of nnU-Net v2 from its library ``batchgeneratorsv2`` (extra ``training``).

Ranges, probabilities and order are those of ``nnUNetTrainer``; images (C, S, R, K), or (C, R, K) for a
two-dimensional network.
"""

from collections.abc import Callable

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from torch import Tensor

from dicomnode.ml.training.augmentation import Geometry
from dicomnode.ml.training.sampling import OUTSIDE

_CONTRAST = (0.75, 1.25)
_GAMMA = (0.7, 1.5)


def compose(geometry: Geometry) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Put the changes for patches of this kind together."""
    changes = ComposeTransforms([*_geometric(geometry), *_intensities(geometry), *_last(geometry)])

    def apply(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        changed = changes(image=image, segmentation=labels)
        return changed["image"], changed["segmentation"]

    return apply


def _geometric(geometry: Geometry) -> list[BasicTransform]:
    is_pseudo_2d = geometry.dimensions == 3 and geometry.turns_in_slices
    patch = geometry.patch_shape[1:] if geometry.turns_in_slices else geometry.patch_shape
    warp = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=(-geometry.rotation_rad, geometry.rotation_rad),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=OUTSIDE,
    )
    return [Convert3DTo2DTransform(), warp, Convert2DTo3DTransform()] if is_pseudo_2d else [warp]


def _intensities(geometry: Geometry) -> list[BasicTransform]:
    apart = (0,) if geometry.dimensions == 3 and geometry.turns_in_slices else None
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    # Not benchmarked: which of two ways is quicker would decide the last digits of the result.
    blur = GaussianBlurTransform(
        blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
    )
    brightness = MultiplicativeBrightnessTransform(
        multiplier_range=BGContrast(_CONTRAST), synchronize_channels=False, p_per_channel=1
    )
    contrast = ContrastTransform(
        contrast_range=BGContrast(_CONTRAST), preserve_range=True, synchronize_channels=False, p_per_channel=1
    )
    coarse = SimulateLowResolutionTransform(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=apart,
        allowed_channels=None,
        p_per_channel=0.5,
    )
    odds = (
        (noise, 0.1),
        (blur, 0.2),
        (brightness, 0.15),
        (contrast, 0.15),
        (coarse, 0.25),
        (_gamma(inverted=True), 0.1),
        (_gamma(inverted=False), 0.3),
    )
    return [RandomTransform(change, apply_probability=odd) for change, odd in odds]


def _gamma(*, inverted: bool) -> BasicTransform:
    return GammaTransform(
        gamma=BGContrast(_GAMMA),
        p_invert_image=int(inverted),
        synchronize_channels=False,
        p_per_channel=1,
        p_retain_stats=1,
    )


def _last(geometry: Geometry) -> list[BasicTransform]:
    axes = tuple(axis - (3 - geometry.dimensions) for axis in geometry.mirror_axes)
    changes: list[BasicTransform] = [MirrorTransform(allowed_axes=axes)] if axes else []
    if geometry.masks_outside:
        changes.append(MaskImageTransform(apply_to_channels=[0], channel_idx_in_seg=0, set_outside_to=0))
    return [*changes, RemoveLabelTransform(OUTSIDE, 0)]
