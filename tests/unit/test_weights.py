"""Weight files are refused unless every byte is accounted for, and come back exactly."""

import io
import json
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomnode import weights
from dicomnode.errors import ModelFormatError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def file_of(header: dict[str, object] | bytes, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(start: int = 0, stop: int = 8, *, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@st.composite
def tensor_sets(draw: st.DrawFn) -> weights.Tensors:
    names = draw(st.lists(st.text("abc.xyz_0", min_size=1, max_size=8), unique=True, max_size=4))
    made = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        values = torch.tensor(draw(st.integers(0, 1))) + torch.arange(torch.Size(shape).numel())
        made[name] = values.reshape(shape).to(draw(st.sampled_from(DTYPES)))
    return made


@given(tensor_sets())
def test_weights_come_back_as_they_were(tensors: weights.Tensors) -> None:
    back = weights.decode(weights.encode(tensors), schema=weights.schema_of(tensors))

    assert weights.is_equal(back, tensors)
    assert {name: tensor.dtype for name, tensor in back.items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }


def test_equal_weights_and_metadata_give_equal_bytes() -> None:
    one = {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.float64)}
    other = {"a": torch.zeros(3, dtype=torch.float64), "b": torch.ones(2)}
    metadata = {letter: letter for letter in "zyxwvutsr"}

    first = weights.encode(one, metadata)
    second = weights.encode(other, dict(reversed(metadata.items())))

    assert first == second
    assert weights.is_equal(weights.decode(first), one)


@pytest.mark.parametrize("metadata", [{}, {"k": "v"}])
def test_a_written_file_is_readable_by_others_and_leaves_no_scratch(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"

    digest = weights.write(path, {"a": torch.ones(2)}, metadata=metadata)

    assert digest == weights.sha256_of(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [child.name for child in tmp_path.iterdir()] == ["w.safetensors"]
    assert weights.read(path)["a"].tolist() == [1.0, 1.0]


@given(tensor_sets())
def test_a_file_written_from_where_the_tensors_lie_is_the_encoded_one(
    tmp_path_factory: pytest.TempPathFactory, tensors: weights.Tensors
) -> None:
    path = tmp_path_factory.mktemp("w") / "w.safetensors"

    weights.write(path, tensors)

    assert path.read_bytes() == weights.encode(tensors)
    assert weights.is_equal(weights.read(path, schema=weights.schema_of(tensors)), tensors)


def test_changing_what_was_read_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights.write(path, {"a": torch.ones(2)})

    read = weights.read(path)["a"]
    read += 1

    assert read.tolist() == [2.0, 2.0]
    assert weights.read(path)["a"].tolist() == [1.0, 1.0]


def test_a_file_above_the_limit_of_its_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights.write(path, {"a": torch.ones(2)})
    size = path.stat().st_size

    assert weights.read(path, maximum_bytes=size).keys() == {"a"}
    with pytest.raises(ModelFormatError, match=f"{size} bytes; more than 8 and at most {size - 1}"):
        weights.read(path, maximum_bytes=size - 1)


def test_only_who_allows_it_reads_a_file_of_more_than_a_gibibyte(tmp_path: Path) -> None:
    path, half = tmp_path / "w.safetensors", 600 * 1024**2
    header = {
        "a": entry(0, half, dtype="U8", shape=(half,)),
        "b": entry(half, 2 * half, dtype="U8", shape=(half,)),
    }
    with path.open("wb") as file:
        start = file_of(header)
        file.write(start)
        file.truncate(len(start) + 2 * half)  # a hole: takes no room on the disk

    with pytest.raises(ModelFormatError, match="at most 1073741824"):
        weights.read(path)
    read = weights.read(path, maximum_bytes=weights.MAXIMUM_LOCAL_BYTES)
    assert (int(read["b"][-1]), len(read["b"])) == (0, half)


def test_the_header_says_where_each_tensor_lies() -> None:
    data = weights.encode({"a": torch.ones(2), "b": torch.zeros(1, 3)})

    infos = weights.parse_header(io.BytesIO(data), size=len(data))

    assert [(info.name, info.dtype, info.shape, info.start, info.stop) for info in infos] == [
        ("a", "F32", (2,), 0, 8),
        ("b", "F32", (1, 3), 8, 20),
    ]
    assert weights.schema_from_header(infos) == weights.schema_of(weights.decode(data))


HOSTILE = {
    "empty": b"",
    "only a length": (2).to_bytes(8, "little"),
    "header beyond the file": (2**40).to_bytes(8, "little") + b"{}",
    "header above 1 MiB": file_of(b"{" + b" " * 2**20 + b"}"),
    "no JSON": file_of(b"{nope"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "deep nesting": file_of(b"[" * 100_000),
    "a list": file_of(b"[]"),
    "not a number": file_of(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}'),
    "duplicate tensor": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "duplicate key inside a tensor": file_of(
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"
    ),
    "metadata above 4 KiB": file_of({"__metadata__": {"k": "v" * 4096}}),
    "metadata with a number": file_of({"__metadata__": {"k": 1}}),
    "metadata no table": file_of({"__metadata__": []}),
    "unknown dtype": file_of({"a": entry(dtype="F8_E4M3")}, bytes(8)),
    "dtype no string": file_of({"a": entry(dtype=["F32"])}, bytes(8)),
    "surplus key": file_of({"a": entry() | {"code": "import os"}}, bytes(8)),
    "lacking key": file_of({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "entry no table": file_of({"a": 1}, bytes(8)),
    "shape no list": file_of({"a": entry(shape="2")}, bytes(8)),
    "shape with a fraction": file_of({"a": entry(shape=[2.0])}, bytes(8)),
    "shape with a boolean": file_of({"a": entry(0, 4, shape=[True])}, bytes(4)),
    "negative shape": file_of({"a": entry(shape=[-1, -2])}, bytes(8)),
    "huge shape hidden by a zero": file_of({"a": entry(0, 0, shape=[2**40, 0])}),
    "shape that overflows": file_of({"a": entry(shape=[2**31, 2**31, 2**2])}, bytes(8)),
    "too many axes": file_of({"a": entry(shape=[1] * 8 + [2])}, bytes(8)),
    "shape and range differ": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "range backwards": file_of({"a": entry(8, 0)}, bytes(8)),
    "range with three numbers": file_of({"a": entry() | {"data_offsets": [0, 8, 8]}}, bytes(8)),
    "hole": file_of({"a": entry(), "b": entry(12, 20)}, bytes(20)),
    "overlap": file_of({"a": entry(), "b": entry(4, 12)}, bytes(12)),
    "hole at the start": file_of({"a": entry(8, 16)}, bytes(16)),
    "trailing bytes": file_of({"a": entry()}, bytes(9)),
    "data cut short": file_of({"a": entry()}, bytes(7)),
    "name empty": file_of({"": entry()}, bytes(8)),
    "name with a control character": file_of({"a\n": entry()}, bytes(8)),
    "name too long": file_of({"a" * 257: entry()}, bytes(8)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_before_its_data_are_touched(data: bytes) -> None:
    with pytest.raises(ModelFormatError):
        weights.parse_header(data, size=len(data))
    with pytest.raises(ModelFormatError):
        weights.decode(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(ModelFormatError):
        weights.decode(b"\x20" + bytes(7) + data)


@given(st.data())
def test_a_damaged_file_is_refused_or_reads_as_some_weights(data: st.DataObject) -> None:
    encoded = bytearray(weights.encode({"a": torch.ones(3), "b": torch.zeros(2, 2)}, {"k": "v"}))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))

    try:
        back = weights.decode(bytes(encoded))
    except ModelFormatError:
        return
    assert sum(tensor.nbytes for tensor in back.values()) == 28


def test_another_schema_is_named_in_the_refusal() -> None:
    schema = weights.schema_of({"a": torch.ones(2), "b": torch.ones(1)})

    with pytest.raises(ModelFormatError, match=r"1 unexpected tensors .*'c'.* 1 lacking .*'b'"):
        weights.decode(weights.encode({"a": torch.ones(2), "c": torch.ones(1)}), schema=schema)


def test_a_missing_file_is_a_format_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"w\.safetensors cannot be read"):
        weights.read(tmp_path / "w.safetensors")


def test_the_schema_digest_is_over_sorted_lines_of_name_dtype_and_shape() -> None:
    schema = weights.schema_of({"b": torch.ones(2, 3), "a": torch.tensor(1.0, dtype=torch.bfloat16)})

    # printf 'a:BF16:\nb:F32:2x3' | sha256sum
    assert schema.digest == "18c730a999b02922189e9073232dcb1d76b58a3870fdc1f02dc83da2da1b64fa"


def test_a_difference_added_to_its_base_gives_the_tuned_weights() -> None:
    base = {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor([7])}
    tuned = {"w": torch.tensor([1.5, -2.0]), "count": torch.tensor([9])}

    delta = weights.delta(tuned, base)

    assert {name: tensor.tolist() for name, tensor in delta.items()} == {"w": [0.5, -4.0]}
    assert weights.apply(base, delta)["w"].tolist() == [1.5, -2.0]
    assert weights.apply(base, delta, scale=0.5)["w"].tolist() == [1.25, 0.0]
    assert weights.apply(base, delta)["count"].tolist() == [7]
    assert base["w"].tolist() == [1.0, 2.0]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), st.floats(-2, 2))
def test_applying_a_scaled_difference_moves_each_element_by_that_much(
    values: list[float], scale: float
) -> None:
    base = {"w": torch.zeros(len(values))}

    moved = weights.apply(base, {"w": torch.tensor(values)}, scale=scale)

    assert moved["w"].tolist() == pytest.approx([scale * value for value in values], rel=1e-5, abs=1e-5)


def test_differences_that_do_not_fit_are_refused() -> None:
    base = {"w": torch.ones(2)}

    with pytest.raises(ModelFormatError, match="'w' does not fit"):
        weights.apply(base, {"w": torch.ones(3)})
    with pytest.raises(ModelFormatError, match="'v' does not fit"):
        weights.apply(base, {"v": torch.ones(2)})
    with pytest.raises(ModelFormatError, match="do not fit"):
        weights.delta({"w": torch.ones(3)}, base)


def test_rounding_to_bfloat16_keeps_integers_and_eight_bits_of_mantissa() -> None:
    rounded = weights.to_bf16({"w": torch.tensor([1.0, 1.00390625 / 2 + 0.5]), "n": torch.tensor([3])})

    assert rounded["w"].dtype == torch.bfloat16
    assert rounded["w"].tolist() == [1.0, 1.0]
    assert rounded["n"].dtype == torch.int64


def test_norm_and_finiteness_cover_all_tensors() -> None:
    tensors = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]]), "n": torch.tensor([100])}

    assert weights.norm(tensors) == 5.0
    assert weights.is_finite(tensors)
    assert not weights.is_finite(tensors | {"c": torch.tensor([float("inf")])})
    assert not weights.is_finite(tensors | {"c": torch.tensor([float("nan")])})
