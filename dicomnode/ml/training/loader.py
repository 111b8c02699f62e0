"""Batches of training samples, made by processes of their own while the network learns."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dicomnode.errors import ConfigError
from dicomnode.ml.training.augmentation import Transform, seeded
from dicomnode.ml.training.fit import Batch
from dicomnode.ml.training.sampling import OUTSIDE, Sampler, draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which samples of each batch this process takes: every ``count``-th, from ``rank`` on."""

    rank: int = 0
    count: int = 1


class _Samples(Dataset[tuple[Tensor, Tensor]]):
    """Samples by number."""

    def __init__(self, sampler: Sampler, transform: Transform | None) -> None:
        self._sampler = sampler
        self._transform = transform

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        generator = self._sampler.generator(number)
        image, labels = draw(self._sampler, number, generator)
        if self._transform is None:
            labels = labels.masked_fill(labels == OUTSIDE, 0)
        else:
            with seeded(generator):
                image, labels = self._transform(image, labels)
        return image[None], labels.to(torch.uint8)  # (C, S, R, K) and (S, R, K)


def check_share(batch_size: int, processes: int) -> None:
    """Refuse a batch that several processes cannot share equally.

    Raises
    ------
    ConfigError
        Some would have more samples than others.
    """
    if batch_size % processes:
        raise ConfigError(
            f"a batch of {batch_size} samples cannot be shared by {processes} processes; choose --batch-size "
            f"{batch_size - batch_size % processes + processes}, or another number of processes"
        )


def training_batches(
    sampler: Sampler, transform: Transform, *, share: Share, first_step: int, workers: int
) -> Generator[Batch]:
    """Give the batches of a training from a step on, without end; closing the iterator ends the workers.

    Parameters
    ----------
    workers
        Processes that cut and change samples; 0 does it in this one.
    """
    loader = DataLoader(
        _Samples(sampler, transform),
        batch_sampler=_numbers(sampler, share, first_step),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # without one of its own it draws from the global one
    )
    for images, labels in loader:
        yield Batch(images=images, labels=labels)


def validation_batches(sampler: Sampler, *, share: Share, steps: int) -> Iterator[Batch]:
    """Give the same batches of unchanged samples each time."""
    samples = _Samples(sampler, None)
    for numbers in islice(_numbers(sampler, share, 0), steps):
        pairs = [samples[number] for number in numbers]
        yield Batch(
            images=torch.stack([image for image, _ in pairs]),
            labels=torch.stack([labels for _, labels in pairs]),
        )


def _numbers(sampler: Sampler, share: Share, first_step: int) -> Iterator[list[int]]:
    for step in count(first_step):
        start = step * sampler.batch_size
        yield list(range(start + share.rank, start + sampler.batch_size, share.count))
