"""Corrected cases as training samples: brought into the frame of the network once, kept on disk, cut anew.

A kept case is a folder of arrays that are read by memory mapping, and ``case.json``, which is written last;
what was kept for another plan or from another version of the case is made anew.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from dicomnode import durable
from dicomnode.errors import CorrectionError
from dicomnode.ml.model.architecture import Triple
from dicomnode.ml.model.plan import Plan
from dicomnode.ml.training import losses, reviewed
from dicomnode.ml.training.fit import Batch, ShouldStop, epoch_generator
from dicomnode.ml.training.prepared import prepared_digest
from dicomnode.ml.training.recipes import Recipe
from dicomnode.ml.training.reviewed import Patch, ReviewedVolume, TrainingCase

_ARRAYS = ("image", "labels", "slices", "slice_weights", "border")
_LARGEST_SHIFT, _LARGEST_SCALE, _GAMMA = 0.2, 0.25, (0.7, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSource:
    """A corrected case that is read when it is needed."""

    name: str
    version: str  # changes with the content
    read: Callable[[], TrainingCase]
    trust: float = 1.0  # 0..1, times the trust in its slices; 0 leaves the case out


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCase:
    """A case in the frame of the network, on disk."""

    name: str
    patient_key: str
    volume: ReviewedVolume


class _CaseFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dicomnode corrected 1"] = "dicomnode corrected 1"
    key: str
    patient_key: str
    centres: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What the batches of a training are cut from; one sample is centred on one reviewed slice."""

    new: tuple[KeptCase, ...]
    earlier: tuple[KeptCase, ...]  # learned before, to be repeated
    recipe: Recipe
    patch_shape: Triple
    mirror_axes: tuple[int, ...]
    classes: int
    seed: int

    @property
    def slices(self) -> int:
        """Reviewed slices of the new cases."""
        return sum(len(case.volume.centres) for case in self.new)

    @property
    def epoch_samples(self) -> tuple[int, int]:
        """Samples of an epoch: of new cases, and of earlier ones."""
        limit = self.recipe.samples_per_case
        new = sum(
            len(case.volume.centres) if limit is None else min(limit, len(case.volume.centres))
            for case in self.new
        )
        repeated = self.recipe.replay * new / (1 - self.recipe.replay)
        return new, round(repeated) if self.earlier else 0

    @property
    def epoch_steps(self) -> int:
        """Batches of an epoch: as many whole ones as there are samples for, at least one."""
        return max(1, sum(self.epoch_samples) // self.recipe.batch_size)


def keep(
    sources: Sequence[CaseSource],
    plan: Plan,
    folder: Path,
    *,
    balanced: bool,
    should_stop: ShouldStop = lambda: False,
) -> tuple[KeptCase, ...] | None:
    """Bring cases into the frame of a plan, those that are not there yet; cases without trust are left out.

    Parameters
    ----------
    balanced
        Whether the weights at borders are needed too.
    should_stop
        Asked after each case that was not there yet.

    Returns
    -------
        None: asked to stop; what was brought stays, so that each call comes further.

    Raises
    ------
    CorrectionError, GeometryError, UnsupportedSeriesError
        A case cannot be used; see :func:`reviewed.bring`.
    SpoolFullError, ResourceError
        The disk has no room, or cannot be written.
    """
    digest = prepared_digest(plan, plan.final) + ("balanced" if balanced else "")
    kept = []
    with durable.translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            if source.trust <= 0:
                continue
            case, is_new = _keep_one(source, plan, folder / source.name, digest=digest, balanced=balanced)
            kept.append(case)
            if is_new and should_stop():
                return None
    return tuple(kept)


def batches(samples: Samples, first_step: int) -> Generator[Batch]:
    """Give the batches of a training from a step on, without end."""
    weights = _class_weights(samples)
    steps = samples.epoch_steps
    epoch, skipped = divmod(first_step, steps)
    while True:
        generator = epoch_generator(samples.seed, epoch)
        for step, chosen in enumerate(_epoch(samples, generator)):
            # Drawn for each step by itself, so that a training that goes on draws what it would have drawn.
            own = epoch_generator(samples.seed + 1, epoch * steps + step)
            if step >= skipped:
                yield _batch(samples, chosen, weights, own)
        epoch, skipped = epoch + 1, 0


def _keep_one(
    source: CaseSource, plan: Plan, folder: Path, *, digest: str, balanced: bool
) -> tuple[KeptCase, bool]:
    """Give a case in the frame of the plan, and whether it was brought there now."""
    key = hashlib.sha256(f"{digest}\n{source.name}\n{source.version}".encode()).hexdigest()
    file = _read_file(folder)
    is_new = file is None or file.key != key
    if file is None or is_new:
        file = _write(source.read(), plan, folder, key=key, balanced=balanced)
    arrays: dict[str, Any] = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in _ARRAYS
        if (folder / f"{name}.npy").exists()
    }
    arrays["slice_weights"] = np.array(arrays["slice_weights"]) * np.float32(source.trust)
    volume = ReviewedVolume(centres=file.centres, **arrays)
    return KeptCase(name=source.name, patient_key=file.patient_key, volume=volume), is_new


def _read_file(folder: Path) -> _CaseFile | None:
    try:
        return _CaseFile.model_validate_json((folder / "case.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(case: TrainingCase, plan: Plan, folder: Path, *, key: str, balanced: bool) -> _CaseFile:
    volume = reviewed.bring(case, plan)
    if balanced:
        volume = replace(volume, border=losses.border_weights(volume.image, volume.labels))
    folder.mkdir(exist_ok=True)
    (folder / "case.json").unlink(missing_ok=True)
    for name in _ARRAYS:
        array = getattr(volume, name)
        if array is not None:
            np.save(folder / f"{name}.npy", array)
            durable.sync_file(folder / f"{name}.npy")
    file = _CaseFile(key=key, patient_key=case.patient_key, centres=volume.centres)
    durable.keep(folder / "case.json", file.model_dump_json().encode(), mode=durable.PRIVATE)
    return file


_Chosen = tuple[ReviewedVolume, tuple[float, float, float]]


def _epoch(samples: Samples, generator: torch.Generator) -> list[list[_Chosen]]:
    """Draw the samples of an epoch, in batches."""
    new, repeated = samples.epoch_samples
    limit = samples.recipe.samples_per_case
    drawn = [one for case in samples.new for one in _drawn(case, limit, generator)]
    pool = [(case.volume, centre) for case in samples.earlier for centre in case.volume.centres]
    drawn += [pool[index] for index in torch.randint(max(len(pool), 1), (repeated,), generator=generator)]
    if len(drawn) != new + repeated:
        raise CorrectionError(f"{len(drawn)} samples were drawn, {new + repeated} were expected.")
    order = torch.randperm(len(drawn), generator=generator).tolist()
    size = samples.recipe.batch_size
    return [[drawn[index] for index in order[n * size : (n + 1) * size]] for n in range(samples.epoch_steps)]


def _drawn(case: KeptCase, limit: int | None, generator: torch.Generator) -> list[_Chosen]:
    centres = case.volume.centres
    order = (
        range(len(centres)) if limit is None else torch.randperm(len(centres), generator=generator)[:limit]
    )
    return [(case.volume, centres[int(index)]) for index in order]


def _class_weights(samples: Samples) -> Tensor | None:
    if not samples.recipe.balanced:
        return None
    volumes = [case.volume for case in (*samples.new, *samples.earlier)]
    return torch.from_numpy(reviewed.balance(volumes, classes=samples.classes))


def _batch(
    samples: Samples, chosen: Sequence[_Chosen], class_weights: Tensor | None, generator: torch.Generator
) -> Batch:
    patches = [reviewed.cut(volume, centre, samples.patch_shape) for volume, centre in chosen]
    if samples.recipe.augmented:
        patches = [_changed(patch, samples.mirror_axes, generator) for patch in patches]
    return Batch(
        images=torch.stack([patch.image for patch in patches])[:, None],  # (B, C, S, R, K)
        labels=torch.stack([patch.labels for patch in patches]),
        weights=torch.stack([_weighed(patch, class_weights) for patch in patches]),
        known=torch.stack([patch.known for patch in patches]),
    )


def _weighed(patch: Patch, class_weights: Tensor | None) -> Tensor:
    """Weigh voxels for balance, borders and review: ``trust * (av / freq_c + border)`` (Dafne), or review."""
    if class_weights is None:
        return patch.weights
    return patch.weights * (class_weights[patch.labels] + patch.border)


def _changed(patch: Patch, mirror_axes: Sequence[int], generator: torch.Generator) -> Patch:
    """Mirror a patch along each axis that allows it with probability one half, and change its intensities."""
    axes = [axis - 3 for axis in mirror_axes if torch.rand((), generator=generator) < 0.5]
    image = _brightened(patch.image, generator)
    if not axes:
        return replace(patch, image=image)
    return Patch(
        image=image.flip(axes),
        labels=patch.labels.flip(axes),
        weights=patch.weights.flip(axes),
        known=patch.known.flip(axes),
        border=patch.border.flip(axes),
    )


def _brightened(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast, brightness and, every third time, gamma: within the limits of nnU-Net's."""
    draws = torch.rand(4, generator=generator)
    scale = 1 + _LARGEST_SCALE * (2 * float(draws[0]) - 1)
    shift = _LARGEST_SHIFT * (2 * float(draws[1]) - 1)
    if float(draws[2]) < 1 / 3:
        low, high = image.min(), image.max()
        width = (high - low).clamp_min(1e-6)
        exponent = _GAMMA[0] + (_GAMMA[1] - _GAMMA[0]) * float(draws[3])
        image = ((image - low) / width) ** exponent * width + low
    return image * scale + shift
