"""Encoding: values come back as they were, and bytes that are no encoding are refused."""

import enum
import json
import math
import struct
import sys
import types
from collections import OrderedDict, deque
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file

from offbeat.encoding import EncodingError, decode, encode, type_name
from offbeat.messages import message
from offbeat.node import Shard


class Colour(enum.Enum):
    RED = 1
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: float
    name: str


@dataclass
class Momentum:
    vector: torch.Tensor | None = None
    by_rank: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slotted:
    number: int


@dataclass(frozen=True)
class Squared:
    number: int

    def __post_init__(self):
        raise AssertionError("a constructor ran")

    @cached_property
    def square(self):
        return self.number**2


@dataclass
class Swollen(list):
    number: int = 0


@message
class Note:
    values: torch.Tensor
    count: int


def same(a: Any, b: Any) -> bool:
    """Equal in type and to the bit, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and octets(a) == octets(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, deque):
        return a.maxlen == b.maxlen and same(list(a), list(b))
    return a == b


def octets(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters())  # Lone halves of surrogate pairs among them.
    | st.binary()
    | st.sampled_from([Colour.RED, Colour.GREEN, Level.LOW, Access.WRITE])
    | st.builds(lambda parts: Path("/".join(parts)), st.lists(st.text("abé", min_size=1)))
)
tensors = st.builds(
    lambda values, dtype: torch.tensor(values).to(dtype),
    st.lists(st.integers(0, 1)) | st.integers(0, 1) | st.lists(st.just([1, 2, 3]), max_size=3),
    st.sampled_from(
        [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.uint16, torch.complex128]
    ),
)
arrays = st.builds(
    lambda values, dtype: np.array(values).astype(dtype),
    st.lists(st.integers(0, 9)) | st.integers(0, 9),
    st.sampled_from(["f8", ">f4", "i1", "u2", "?", "c8", "U3", "S2", "m8[s]"]),
)
keys = scalars | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars | tensors | arrays | arrays.map(lambda array: array[()]),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(keys).map(set)
        | st.frozensets(keys)
        | st.builds(deque, st.lists(inner, max_size=3), st.sampled_from([None, 3]))
        | st.dictionaries(keys, inner)
        | st.dictionaries(st.text(), inner)
        | st.builds(Point, st.floats(), st.text())
        | st.builds(Slotted, st.integers())
        | st.builds(Shard, index=st.integers(), server=st.integers(), span=inner)
    ),
    max_leaves=12,
)


@given(values)
def test_values_come_back_to_the_bit(value):
    assert same(decode(encode(value)), value)
    assert same(decode(memoryview(encode(value))), value)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2),
    *(torch.float8_e4m3fn, torch.complex32, torch.complex64, torch.complex128, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind_and_shape(dtype, shape):
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2, (count,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)
    assert same(decode(encode([tensor])), [tensor])


def test_numbers_that_json_has_not():
    payload = struct.unpack(">d", bytes.fromhex("7ff800000000beef"))[0]
    held = [math.nan, payload, -math.inf, -0.0, 5e-324, 1 << 53, -(1 << 5000), 1.0, 1]
    assert same(decode(encode(held)), held)


def test_records_of_every_kind():
    held = Momentum(torch.ones(3), {0: Note(torch.zeros(2), 4), 1: Point(1.5, "a")})
    back = decode(encode(held))
    assert type(back) is Momentum
    assert torch.equal(back.vector, held.vector)
    assert back.by_rank[0].count == 4
    assert back.by_rank[1] == held.by_rank[1]
    assert back.vector is not held.vector


def test_no_constructor_runs_and_caches_are_left_out():
    made = object.__new__(Squared)
    object.__setattr__(made, "number", 3)
    assert made.square == 9
    back = decode(encode(made))
    assert back.__dict__ == {"number": 3}
    assert back.square == 9


def test_what_a_dataclass_holds_beside_its_fields_is_kept():
    held = Momentum()
    held.extra = torch.ones(2)
    assert torch.equal(decode(encode(held)).extra, torch.ones(2))
    held.extra = object()
    with pytest.raises(EncodingError, match=r"^extra: builtins.object cannot be encoded"):
        encode(held)


def test_a_tensor_that_occurs_twice_is_one_tensor_again():
    shared, alike = torch.ones(1000), torch.ones(1000)
    data = encode({"a": shared, "b": [shared], "c": alike, "d": shared[:10], "e": shared[5:]})
    back = decode(data)
    assert back["a"] is back["b"][0]
    assert back["a"] is not back["c"]
    back["a"].zero_()
    assert bool((back["e"] == 1).all())
    assert len(data) < 4 * 3200


def test_tensors_that_share_memory_or_have_gaps():
    base = torch.arange(12.0).reshape(3, 4)
    held = [base, base.t(), base[:, 1], base[0], base.expand(2, 3, 4), torch.ones(2) * 1j]
    held[5] = held[5].conj()
    assert same([t.resolve_conj() for t in held], decode(encode(held)))


def test_the_file_is_readable_without_this_package(tmp_path):
    state = {"parameters": torch.ones(2), "states": [Momentum(torch.zeros(3))], "node 3": b"xy"}
    stored = load(encode(state))
    assert sorted(stored) == ["node_3", "parameters", "states.0.vector"]
    assert torch.equal(stored["parameters"], torch.ones(2))


def test_names_that_clash_stay_apart():
    held = {"a b": torch.zeros(1), "a_b": torch.ones(1), "__metadata__": torch.ones(2)}
    assert same(decode(encode(held)), held)
    assert same(decode(encode(torch.ones(2))), torch.ones(2))


def test_equal_values_are_equal_bytes_whatever_the_hash_seed():
    one = encode({"s": {"ab", "cd", "ef", "gh"}, "f": frozenset([(1, "x"), (2, "y")])})
    other = encode({"s": {"gh", "ef", "cd", "ab"}, "f": frozenset([(2, "y"), (1, "x")])})
    assert one == other


def local_class():
    @dataclass
    class Local:
        number: int

    return Local


def test_classes_from_inside_functions_are_given_in_types():
    local = local_class()
    data = encode(local(3))
    assert decode(data, types=[local]) == local(3)
    with pytest.raises(EncodingError, match=r"no class 'test_encoding:local_class.<locals>.Local'"):
        decode(data)


def test_the_main_module_has_one_name_in_every_process():
    main = dataclass(type("State", (), {"__module__": "__mp_main__", "__annotations__": {}}))
    assert type_name(main) == "__main__:State"
    assert isinstance(decode(encode(main()), types=[main]), main)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda: 0, r"^the value: builtins.function cannot be encoded; hold tensors"),
        ({"a": [1, OrderedDict()]}, r"^a.1: collections.OrderedDict cannot be encoded"),
        ([torch.nn.Parameter(torch.ones(1))], r"^0: torch.nn.parameter.Parameter cannot be"),
        (torch.ones(1, requires_grad=True), r"^the value: a tensor that requires grad; detach"),
        (torch.eye(2).to_sparse(), r"layout torch.sparse_coo on cpu cannot be encoded; make it"),
        (torch.ones(2, device="meta"), "on meta cannot be encoded"),
        (np.array([object()]), "an array of object has no encoding"),
        (np.zeros(2, "f4,i4"), "has no encoding"),
        (Access.READ | Access.WRITE, "is no single member of its enum"),
        (Swollen(), "Swollen cannot be encoded"),
        (ValueError("x"), "builtins.ValueError cannot be encoded"),
        (Momentum, "builtins.type cannot be encoded"),
    ],
)
def test_what_has_no_encoding_is_refused_by_place(value, text):
    with pytest.raises(EncodingError, match=text) as raised:
        encode(value)
    assert "\n" not in str(raised.value)


def test_a_replacement_is_written_for_what_has_no_encoding():
    made = [object(), 1, {"a": object()}]
    data = encode(made, replace=lambda value: "stood in" if type(value) is object else value)
    assert decode(data) == ["stood in", 1, {"a": "stood in"}]
    with pytest.raises(EncodingError, match=r"builtins\.function cannot be encoded"):
        encode([len, local_class], replace=lambda value: None if value is len else value)


def test_a_tensor_of_a_device_that_is_not_here_comes_to_the_cpu(tmp_path):
    for device in ("cuda:99", "cpu", "mps"):
        back = decode(written({"tensor": "t", "device": device}, tmp_path, t=torch.ones(2)))
        assert back.device.type == "cpu"
    with pytest.raises(EncodingError, match="no encoding of a value: "):
        decode(written({"tensor": "t", "device": "abacus"}, tmp_path, t=torch.ones(2)))


def test_a_value_that_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodingError, match="contains itself, or is nested too deeply"):
        encode(endless)


def written(tree: Any, tmp_path: Path, **stored: torch.Tensor) -> bytes:
    save_file(stored, tmp_path / "x", {"offbeat": json.dumps(tree)})
    return (tmp_path / "x").read_bytes()


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"dataclass": "os:system", "fields": {}}, "no class 'os:system' of its kind is here"),
        ({"dataclass": "subprocess:Popen", "fields": {}}, "no class 'subprocess:Popen'"),
        ({"dataclass": "antigravity:X", "fields": {}}, "import its module first"),
        ({"enum": "test_encoding:Momentum", "member": "RED"}, "no class 'test_encoding:Mom"),
        ({"enum": "test_encoding:Colour", "member": "BLUE"}, "it lacks 'BLUE'"),
        ({"namedtuple": "test_encoding:Colour", "fields": {}}, "no class"),
        ({"dataclass": "test_encoding:Swollen", "fields": {}}, "no class"),
        (
            {"dataclass": "test_encoding:Slotted", "fields": {}},
            "test_encoding:Slotted differs here: what was written lacks 'number'",
        ),
        (
            {"dataclass": "test_encoding:Slotted", "fields": {"number": 1, "more": 2}},
            "'more'",
        ),
        (
            {"dataclass": "test_encoding:Squared", "fields": {"number": 1, "square": 2}},
            "test_encoding:Squared differs here: what was written has 'square'",
        ),
        ({"pickle": "cos"}, "'pickle' is no kind of value"),
        ({}, "'nothing' is no kind of value"),
        ({"tensor": "absent"}, "it lacks 'absent'"),
        ({"tensor": "t", "dtype": "quint8", "shape": [4]}, "it lacks 'quint8'|tensor t is"),
        ({"array": "t", "dtype": "|O8", "shape": [1]}, "'|O8' is no type of array"),
        ({"tuple": 3}, "3 where list is due"),
        ({"set": [[]]}, "unhashable"),
        ({"deque": [], "maxlen": "x"}, "integer"),
        ({"tuple": [], "more": 1}, "unexpected keyword"),
        ({"float": "ff"}, "unpack"),
    ],
)
def test_trees_that_do_not_fit_are_refused(tree, text, tmp_path):
    data = written(tree, tmp_path, t=torch.ones(4))
    with pytest.raises(EncodingError, match=text.replace("|O8", r"\|O8")) as raised:
        decode(data)
    assert "\n" not in str(raised.value)


def test_nothing_is_imported_and_no_module_is_asked(tmp_path, monkeypatch):
    asked: list[str] = []
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    for name in ("lazy:Anything", "this:Zen"):
        with pytest.raises(EncodingError, match="no class"):
            decode(written({"dataclass": name, "fields": {}}, tmp_path))
    assert not asked
    assert "this" not in sys.modules


EXAMPLE = encode(
    {
        "t": [torch.ones(3), torch.ones(2, dtype=torch.complex64)],
        "n": {1: Point(math.inf, "x"), (2, "y"): Momentum(torch.zeros(1), {3: Colour.RED})},
        "a": (np.arange(3), np.array(["ab"]), np.float32(2), deque([1], 2), {5}, b"xyz", 1 << 70),
    }
)


def refusal(data: bytes | bytearray) -> str:
    """Why bytes are no encoding; empty if they are one."""
    try:
        decode(data)
    except EncodingError as error:
        return str(error)
    return ""


@given(st.integers(0, len(EXAMPLE) - 1))
def test_bytes_that_are_cut_short_are_refused(length):
    with pytest.raises(EncodingError):
        decode(EXAMPLE[:length])


@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255)), max_size=4))
def test_damaged_bytes_raise_nothing_else(changes):
    data = bytearray(EXAMPLE)
    for position, octet in changes:
        data[position] = octet
    assert "\n" not in refusal(data)


@given(st.binary())
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(EncodingError):
        decode(data)


WORDS = [
    *("int", "float", "tuple", "set", "frozenset", "deque", "dict", "items", "path", "bytes"),
    *("tensor", "array", "scalar", "enum", "namedtuple", "dataclass", "fields", "member"),
    *("dtype", "shape", "device", "maxlen"),
]
json_trees = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(["t", "ff", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=3,
        )
    ),
)


@given(json_trees)
def test_arbitrary_trees_raise_nothing_else(tree):
    data = save({"t": torch.ones(4)}, {"offbeat": json.dumps(tree)})
    assert "\n" not in refusal(data)
