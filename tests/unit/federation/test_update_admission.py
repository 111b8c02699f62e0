"""Which weights may enter a merge."""

import json
import struct

import pytest
import torch

from dicomnode import weights
from dicomnode.errors import UpdateRejectedError
from dicomnode.federation import admission
from dicomnode.federation.admission import Expectation
from dicomnode.federation.manifest import BlobRef, Encoding
from tests.federation_builders import toy_delta, toy_weights

DIGEST = "00" * 32


def expectation(
    data: bytes, *, encoding: Encoding = "f32", size: int | None = None, bound: float = 6.0
) -> Expectation:
    return Expectation(
        blob=BlobRef(sha256=DIGEST, size=len(data) if size is None else size),
        encoding=encoding,
        schema=weights.schema_of(toy_weights()),
        maximum_bytes=100_000,
        norm_bound=bound,
    )


def refusal_of(data: bytes, **changes: object) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        admission.check(data, expectation(data, **changes))  # type: ignore[arg-type]
    return caught.value.code


def raw_file(header: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


def test_a_sound_update_passes_with_its_norm() -> None:
    data = weights.encode(toy_delta(0.25))
    admitted = admission.check(data, expectation(data))
    assert admitted.norm == pytest.approx(0.25 * 20**0.5)
    assert set(admitted.delta) == {"conv.weight", "conv.bias"}


def test_a_bf16_update_passes_when_the_manifest_says_so() -> None:
    data = weights.encode(weights.to_bf16(toy_delta(0.25)))
    assert admission.check(data, expectation(data, encoding="bf16")).norm > 1
    assert refusal_of(data, encoding="f32") == "wrong_dtype"


@pytest.mark.parametrize(
    ("delta", "code"),
    [
        ({"conv.weight": torch.full((4, 4), float("nan"))}, "not_finite"),
        ({"conv.weight": torch.full((4, 4), float("inf"))}, "not_finite"),
        ({"conv.weight": torch.zeros(4, 4)}, "zero_update"),
        ({"conv.weight": torch.full((4, 4), 2.0)}, "norm_outlier"),
        ({"conv.weight": torch.ones(16)}, "wrong_shape"),
        ({"conv.weight": torch.ones(4, 4, dtype=torch.float64)}, "wrong_dtype"),
        (toy_delta() | {"backdoor.weight": torch.ones(1)}, "unexpected_tensor"),
        (toy_delta() | {"norm.count": torch.tensor([1], dtype=torch.int64)}, "integer_tensor"),
        (toy_delta() | {"norm.count": torch.tensor([1.0])}, "integer_tensor"),
        ({}, "empty_update"),
    ],
)
def test_an_unfit_update_is_refused(delta: weights.Tensors, code: str) -> None:
    assert refusal_of(weights.encode(delta)) == code


def test_a_tiny_overflowing_value_in_bf16_cannot_hide_from_the_norm() -> None:
    delta = {"conv.weight": torch.full((4, 4), 3e38).to(torch.bfloat16)}
    assert refusal_of(weights.encode(delta), encoding="bf16") == "norm_outlier"


def test_a_size_other_than_declared_is_refused() -> None:
    data = weights.encode(toy_delta())
    assert refusal_of(data, size=len(data) + 1) == "wrong_size"


def test_an_oversized_file_is_refused_before_it_is_parsed() -> None:
    assert refusal_of(b"\xff" * 100_001) == "too_large"


def test_a_repeated_key_in_the_header_is_refused() -> None:
    entry = '"conv.bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    assert refusal_of(raw_file(f"{{{entry},{entry}}}", bytes(16))) == "malformed_file"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",
        struct.pack("<Q", 2**40) + b"{}",
        raw_file("{}", b"trailing"),
        raw_file(json.dumps({"conv.bias": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}})),
    ],
)
def test_a_malformed_file_is_refused(data: bytes) -> None:
    assert refusal_of(data, size=max(1, len(data))) in {"malformed_file", "wrong_size"}


def test_the_norm_is_held_against_the_median_once_there_is_one() -> None:
    assert admission.norm_bound([], head_norm=6.0, factor=5.0) == 6.0
    assert admission.norm_bound([1.0, 100.0], head_norm=6.0, factor=5.0) == 6.0
    assert admission.norm_bound([1.0, 100.0, 2.0], head_norm=6.0, factor=5.0) == 10.0


def test_merged_weights_must_be_finite_with_positive_variances() -> None:
    admission.check_merged(toy_weights())
    for tensor, code in (
        (torch.zeros(4), "merged_variance"),
        (torch.full((4,), torch.nan), "merged_not_finite"),
    ):
        with pytest.raises(UpdateRejectedError) as caught:
            admission.check_merged(toy_weights() | {"norm.running_var": tensor})
        assert caught.value.code == code
