"""Golden vectors of the merge rules, worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomnode import weights
from dicomnode.errors import UpdateRejectedError
from dicomnode.federation import merging
from dicomnode.federation.merging import Contribution, MergeRule

HALF = MergeRule(eta=0.5, clip_norm=None)


def contribution(values: list[float], *, staleness: int = 0, update_id: str = "u1") -> Contribution:
    delta = {"w": torch.tensor(values)}
    return Contribution(
        update_id=update_id, delta=delta, norm=weights.norm(delta), n_cases=3, staleness=staleness
    )


def test_a_fresh_update_enters_by_half() -> None:
    head = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([9])}
    merged = merging.merge("dafne_delta", head, [contribution([4.0, -2.0])], HALF)
    assert merged.tensors["w"].tolist() == [3.0, 1.0]
    assert merged.tensors["n"].tolist() == [9]
    assert merged.shares == (merging.Share(update_id="u1", weight=0.5, staleness=0, clip_factor=1.0),)
    assert head["w"].tolist() == [1.0, 2.0]


def test_an_update_three_releases_old_counts_by_half_of_that() -> None:
    # 1 / sqrt(1 + 3) = 0.5, so 0.5 * 0.5 = 0.25 of the delta is added.
    head = {"w": torch.tensor([1.0, 2.0])}
    merged = merging.merge("dafne_delta", head, [contribution([4.0, -2.0], staleness=3)], HALF)
    assert merged.tensors["w"].tolist() == [2.0, 1.5]
    assert merged.shares[0].weight == 0.25


def test_a_long_update_is_shortened() -> None:
    # |(3, 4)| = 5, clipped to 2.5: c = 0.5, so 0.25 of the delta is added.
    rule = MergeRule(eta=0.5, clip_norm=2.5)
    merged = merging.merge("dafne_delta", {"w": torch.zeros(2)}, [contribution([3.0, 4.0])], rule)
    assert merged.tensors["w"].tolist() == [0.75, 1.0]
    assert merged.shares[0].clip_factor == 0.5


@given(
    st.lists(st.integers(-64, 64), min_size=4, max_size=4),
    st.lists(st.integers(-64, 64), min_size=4, max_size=4),
)
def test_on_the_newest_base_it_is_dafnes_rule(head: list[int], upload: list[int]) -> None:
    # Dafne: 0.5 * latest + 0.5 * upload; integers over eight are exact in binary, so equality is exact.
    latest, uploaded = torch.tensor(head) / 8, torch.tensor(upload) / 8
    delta = weights.delta({"w": uploaded}, {"w": latest})
    update = Contribution(update_id="u", delta=delta, norm=weights.norm(delta), n_cases=1, staleness=0)
    merged = merging.merge("dafne_delta", {"w": latest}, [update], HALF)
    assert torch.equal(merged.tensors["w"], 0.5 * latest + 0.5 * uploaded)


def test_on_an_old_base_the_release_is_not_pulled_back() -> None:
    # Base 0, head has moved to 8, the site learned +1. Dafne would give 0.5 * 8 + 0.5 * 1 = 4.5.
    update = contribution([1.0], staleness=3)
    merged = merging.merge("dafne_delta", {"w": torch.tensor([8.0])}, [update], HALF)
    assert merged.tensors["w"].tolist() == [8.25]


@pytest.mark.parametrize(
    ("staleness", "factor"), [(0, 1.0), (1, 1 / math.sqrt(2)), (3, 0.5), (8, 1 / 3), (10, 1 / math.sqrt(11))]
)
def test_staleness_counts_from_the_release_before_the_merge(staleness: int, factor: float) -> None:
    assert merging.staleness_factor(staleness) == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize(("staleness", "code"), [(11, "stale"), (-1, "unknown_base")])
def test_a_base_out_of_reach_is_refused(staleness: int, code: str) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        merging.staleness_factor(staleness)
    assert caught.value.code == code


def test_dafne_delta_takes_one_update_at_a_time() -> None:
    two = [contribution([1.0], update_id="a"), contribution([1.0], update_id="b")]
    with pytest.raises(UpdateRejectedError, match="one update at a time"):
        merging.merge("dafne_delta", {"w": torch.zeros(1)}, two, HALF)


def test_a_tensor_that_the_update_leaves_out_keeps_every_bit() -> None:
    head = {"w": torch.zeros(2), "frozen": torch.tensor([0.1, float("-0.0")])}
    merged = merging.merge("dafne_delta", head, [contribution([1.0, 1.0])], HALF)
    assert merged.tensors["frozen"].view(torch.int32).equal(head["frozen"].view(torch.int32))


def test_a_repeated_merge_is_bit_identical() -> None:
    generator = torch.Generator().manual_seed(1)
    head = {"w": torch.randn(1000, generator=generator)}
    update = contribution(torch.randn(1000, generator=generator).tolist(), staleness=2)
    first, second = (merging.merge("dafne_delta", head, [update], HALF) for _ in range(2))
    assert weights.encode(first.tensors) == weights.encode(second.tensors)
