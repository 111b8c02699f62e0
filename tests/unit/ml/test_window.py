"""The sliding window gives, plane by plane, what a plain loop over all tiles gives at once."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.ml.inference import tiles, window
from dicomnode.ml.inference.window import Window

CPU = torch.device("cpu")


class Lopsided(nn.Module):
    """A network that sees where in a tile it is, so that order, mirroring and blending all show."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, images.shape[2])[:, None, None]
        first = images[:, :1] * self._factor + ramp
        return torch.cat([first, images[:, -1:] ** 2 + images.mean((2, 3, 4), keepdim=True)[:, :1]], dim=1)


def plainly(networks: Sequence[nn.Module], channels: Tensor, how: Window) -> Tensor:
    """Score a whole image in one buffer, tile by tile, in the manner of the textbook."""
    sides = tiles.padding(tuple(channels.shape[1:]), how.tile)
    padded = functional.pad(channels, [side for pair in reversed(sides) for side in pair])
    total, counts = torch.zeros(2, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    places = [
        tiles.starts(size, tile, overlap=how.overlap)
        for size, tile in zip(padded.shape[1:], how.tile, strict=True)
    ]
    for s in places[0]:
        for r in places[1]:
            for k in places[2]:
                box = (slice(s, s + how.tile[0]), slice(r, r + how.tile[1]), slice(k, k + how.tile[2]))
                cut = padded[(slice(None), *box)][None]
                seen = []
                for network in networks:
                    seen.append(network(cut))
                    if how.mirror_axes:
                        seen.append(network(cut.flip(2)).flip(2))
                total[(slice(None), *box)] += torch.stack(seen).mean(0)[0] * tiles.weights(how.tile)
                counts[box] += tiles.weights(how.tile)
    inner = [slice(a, a + size) for (a, _), size in zip(sides, channels.shape[1:], strict=True)]
    return (total / counts)[(slice(None), *inner)]


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 11), st.integers(1, 9)),
    tile=st.sampled_from([(4, 4, 4), (1, 4, 6), (8, 2, 4)]),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    batch=st.integers(1, 3),
    mirror=st.booleans(),
    members=st.integers(1, 2),
)
def test_planes_come_in_order_and_hold_the_weighted_mean_of_all_tiles(
    shape: tuple[int, int, int],
    tile: tuple[int, int, int],
    overlap: float,
    batch: int,
    mirror: bool,  # noqa: FBT001
    members: int,
) -> None:
    channels = torch.randn((2, *shape), generator=torch.Generator().manual_seed(4))
    how = Window(tile=tile, overlap=overlap, mirror_axes=(0,) if mirror else (), batch=batch)
    networks = [Lopsided(1.0), Lopsided(-0.5)][:members]
    planes: list[Tensor] = []
    calls: list[tuple[int, int]] = []

    window.slide(
        networks,
        channels,
        how,
        device=CPU,
        emit=planes.append,
        progress=lambda done, total: calls.append((done, total)),
    )

    torch.testing.assert_close(torch.cat(planes, dim=1), plainly(networks, channels, how))
    assert calls[-1] == (window.passes(shape, how, members=members),) * 2


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [(110, 64, [0, 23, 46]), (64, 64, [0]), (65, 64, [0, 1]), (128, 64, [0, 32, 64]), (3, 1, [0, 1, 2])],
)
def test_tiles_are_spread_evenly_from_end_to_end(size: int, tile: int, expected: list[int]) -> None:
    assert tiles.starts(size, tile, overlap=0.5) == expected


@given(size=st.integers(1, 300), tile=st.integers(2, 64), overlap=st.floats(0, 0.5))
def test_every_voxel_lies_in_a_tile_and_no_tile_leaves_the_image(
    size: int, tile: int, overlap: float
) -> None:
    size = max(size, tile)

    found = tiles.starts(size, tile, overlap=overlap)

    assert found[0] == 0
    assert found[-1] == size - tile
    gaps = [after - before for before, after in pairwise(found)]
    assert all(0 < gap <= tile * (1 - overlap) + 1 for gap in gaps)


def test_the_middle_of_a_tile_counts_most_and_no_voxel_counts_nothing() -> None:
    weights = tiles.weights((8, 16, 32))

    assert weights.shape == (8, 16, 32)
    assert weights.argmax() == (4 * 16 + 8) * 32 + 16
    assert weights.max() == 10
    assert weights.min() > 0
