"""In what two versions differ: plan, labels and weights; figures worked out by hand."""

from dataclasses import replace

import pytest
import torch

from dicomnode.domain import Code
from dicomnode.ml.model.difference import (
    TensorChange,
    ValueChange,
    label_changes,
    plan_changes,
    weights_difference,
)
from tests.pipeline_builders import tiny_plan, tiny_segments


def test_tensors_are_compared_by_the_norm_of_their_difference_the_most_changed_first() -> None:
    first = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[2.0]]), "same": torch.ones(3)}
    second = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([[3.0]]), "same": torch.ones(3)}

    found = weights_difference(first, second)

    assert found.changed == (
        TensorChange(name="b", shape=(1, 1), relative=pytest.approx(1 / 2)),
        TensorChange(name="a", shape=(2,), relative=pytest.approx(1 / 5)),
    )
    assert found.unchanged == 1
    # sqrt(1 + 1) over sqrt(9 + 16 + 4 + 1 + 1 + 1)
    assert found.relative == pytest.approx(2**0.5 / 32**0.5)


def test_the_same_weights_do_not_differ() -> None:
    weights = {"a": torch.tensor([1.0, -2.0]), "count": torch.tensor(7)}
    found = weights_difference(weights, {name: one.clone() for name, one in weights.items()})
    assert (found.relative, found.changed, found.unchanged) == (0.0, (), 2)


def test_what_was_all_zeros_has_no_relative_change_and_stands_first() -> None:
    first = {"a": torch.tensor([1.0]), "zeros": torch.zeros(2)}
    second = {"a": torch.tensor([9.0]), "zeros": torch.tensor([0.0, 1e-6])}
    found = weights_difference(first, second)
    assert [(one.name, one.relative) for one in found.changed] == [("zeros", None), ("a", 8.0)]
    nothing = weights_difference({"zeros": torch.zeros(2)}, {"zeros": torch.ones(2)})
    assert nothing.relative is None


def test_tensors_that_have_no_counterpart_are_named_and_not_compared() -> None:
    first = {"a": torch.ones(2), "wide": torch.ones(2, 2), "old": torch.ones(1)}
    second = {"a": torch.ones(2), "wide": torch.ones(4), "new": torch.ones(1)}
    found = weights_difference(first, second)
    assert (found.only_first, found.only_second, found.reshaped) == (("old",), ("new",), ("wide",))
    assert (found.relative, found.changed, found.unchanged) == (0.0, (), 1)


def test_weights_of_another_precision_are_compared_by_their_values() -> None:
    first, second = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0], dtype=torch.float16)
    assert weights_difference({"a": first}, {"a": second}).relative == 0.0
    small = weights_difference({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0 + 2**-20])})
    assert small.changed[0].relative == pytest.approx(2**-20, rel=1e-9)


def test_two_plans_differ_by_the_place_of_each_value() -> None:
    plan = tiny_plan()
    stage = replace(plan.stages[0], spacing_tolerance=plan.stages[0].spacing_tolerance + 0.05)
    other = replace(plan, stages=(stage, *plan.stages[1:]))
    assert plan_changes(plan, plan) == ()
    (change,) = plan_changes(plan, other)
    assert change.what == "stages[0].spacing_tolerance"
    assert float(change.second or 0) - float(change.first or 0) == pytest.approx(0.05)


def test_a_label_that_means_something_else_or_is_missing_is_named_and_a_colour_is_not() -> None:
    both = tiny_segments()
    front, back = both
    painted = replace(front, rgb=(1, 2, 3))
    assert label_changes(both, (painted, back)) == ()
    recoded = replace(front, type=Code(value="1", scheme="99LOCAL", meaning="Something"))
    (change, gone) = label_changes(both, (recoded,))
    assert change.what == front.label
    assert "99LOCAL 1 Something" in (change.second or "")
    assert front.type.value in (change.first or "")
    assert (gone.what, gone.second) == (back.label, None)
    assert isinstance(gone, ValueChange)
