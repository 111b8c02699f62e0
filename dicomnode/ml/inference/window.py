"""The sliding window: scores of the networks of one stage, plane by plane, in bounded memory.

Tiles are visited slice position by slice position. As soon as no tile to come can reach a plane of
voxels, its scores are finished and handed on, so that only as many planes are held as a tile is
thick, however long the image is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.ml.inference import acceleration, tiles
from dicomnode.ml.model.architecture import Triple

Progress = Callable[[int, int], None]
"""Called with (passes done, passes) while an image is segmented."""
Emit = Callable[[Tensor], None]
"""Takes the scores of the next planes: (classes, n, R, K), in order, without gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How the sliding window runs."""

    tile: Triple
    overlap: float
    mirror_axes: tuple[int, ...]
    batch: int = 1  # tiles in one pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The tiles that begin at one slice."""

    start: int
    corners: tuple[tuple[int, int], ...]


def passes(shape: Sequence[int], window: Window, *, members: int) -> int:
    """Count the passes through a network that an image of (S, R, K) voxels takes."""
    count: int = members * 2 ** len(window.mirror_axes)
    for size, tile in zip(shape, window.tile, strict=True):
        count *= len(tiles.starts(max(size, tile), tile, overlap=window.overlap))
    return count


@torch.inference_mode()
def slide(
    networks: Sequence[nn.Module],
    channels: Tensor,
    window: Window,
    *,
    device: torch.device,
    emit: Emit,
    progress: Progress | None = None,
) -> None:
    """Score an image with all networks of a stage; folds and mirrored passes are averaged.

    Parameters
    ----------
    networks
        Prepared for the device, see :func:`acceleration.prepare`.
    channels
        (C, S, R, K) float32, on the CPU.
    emit
        Takes the averaged scores (logits) in planes along the first axis, float32 on ``device``.
    """
    shape = channels.shape[1:]
    sides = tiles.padding(tuple(shape), window.tile)
    padded = functional.pad(channels, [side for pair in reversed(sides) for side in pair])
    inner = [slice(before, before + size) for (before, _), size in zip(sides, shape, strict=True)]
    total = passes(shape, window, members=len(networks))
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    rows = _rows(tuple(padded.shape[1:]), window)
    sums = _Sums(window.tile, (padded.shape[2], padded.shape[3]), device=device)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        for corners in _batches(row.corners, window.batch):
            cut = torch.stack([_cut(padded, row.start, corner, window.tile) for corner in corners]).to(device)
            scores = _score(networks, cut, window.mirror_axes)
            for one, corner in zip(scores, corners, strict=True):
                sums.add(one, corner)
            note(len(corners) * len(networks) * 2 ** len(window.mirror_axes))
        thickness = window.tile[0] if following is None else following.start - row.start
        finished = sums.take(thickness)
        lower = max(inner[0].start - row.start, 0)
        upper = min(inner[0].stop - row.start, thickness)
        if upper > lower:
            emit(finished[:, lower:upper, inner[1], inner[2]])


class _Sums:
    """Weighted sums of the tiles that still can grow: as many planes as a tile is thick."""

    def __init__(self, tile: Triple, plane: tuple[int, int], *, device: torch.device) -> None:
        self._tile, self._plane, self._device = tile, plane, device
        self._weights = tiles.weights(tile).to(device)
        self._scores: Tensor | None = None
        self._counts = torch.zeros((tile[0], *plane), device=device)

    def add(self, scores: Tensor, corner: tuple[int, int]) -> None:
        if self._scores is None:
            self._scores = torch.zeros((len(scores), self._tile[0], *self._plane), device=self._device)
        rows, columns = (slice(c, c + size) for c, size in zip(corner, self._tile[1:], strict=True))
        self._scores[:, :, rows, columns].addcmul_(scores, self._weights)
        self._counts[:, rows, columns] += self._weights

    def take(self, count: int) -> Tensor:
        """Give the averages of the first planes, and move on by as many."""
        if self._scores is None:
            raise RuntimeError("no tile was added")
        finished = self._scores[:, :count] / self._counts[:count]
        for sums in (self._scores, self._counts[None]):
            rest = sums[:, count:].clone()
            sums[:, : rest.shape[1]] = rest
            sums[:, rest.shape[1] :] = 0
        return finished


def _rows(shape: tuple[int, ...], window: Window) -> list[_Row]:
    places = [
        tiles.starts(size, tile, overlap=window.overlap)
        for size, tile in zip(shape, window.tile, strict=True)
    ]
    corners = tuple(product(places[1], places[2]))
    return [_Row(start=start, corners=corners) for start in places[0]]


def _batches(corners: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    remaining = iter(corners)
    while batch := list(islice(remaining, size)):
        yield batch


def _cut(padded: Tensor, start: int, corner: tuple[int, int], tile: Triple) -> Tensor:
    row, column = corner
    return padded[:, start : start + tile[0], row : row + tile[1], column : column + tile[2]]


def _score(networks: Sequence[nn.Module], images: Tensor, mirror_axes: tuple[int, ...]) -> Tensor:
    """Average the scores over networks and mirrored passes: (B, classes, S, R, K), float32."""
    flips = [
        tuple(axis + 2 for axis in chosen)
        for count in range(len(mirror_axes) + 1)
        for chosen in combinations(mirror_axes, count)
    ]
    total: Tensor | None = None
    with acceleration.precision(images.device):
        for axes in flips:
            mirrored = acceleration.layout(images.flip(axes) if axes else images)
            for network in networks:
                scores = network(mirrored).float()
                scores = scores.flip(axes) if axes else scores
                total = scores if total is None else total.add_(scores)
    if total is None:
        raise RuntimeError("a stage has no network")
    return total.div_(len(flips) * len(networks))
