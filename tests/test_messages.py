import random
import struct
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offbeat.messages import DTYPES, MessageError, codec_of, message, unpack


@message
class Everything:
    first: Tensor
    whole: int
    second: Tensor
    real: float
    flag: bool


@message
class Bare:
    pass


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return (torch.randn(shape, generator=generator) * 50).to(dtype)


everything = st.builds(
    Everything,
    first=tensors(),
    whole=st.integers(-(2**63), 2**63 - 1),
    second=tensors(),
    real=st.floats(allow_nan=False),
    flag=st.booleans(),
)


def equal(one, other):
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b
        for a, b in zip(vars(one).values(), (vars(other)[name] for name in vars(one)), strict=True)
    )


@given(everything)
def test_unpack_gives_back_what_was_packed(sent):
    packed = codec_of(Everything).pack(sent)
    received = unpack(packed)
    assert type(received) is Everything
    assert equal(sent, received)


@given(everything)
def test_size_is_that_on_the_wire_without_padding(sent):
    codec = codec_of(Everything)
    assert 0 <= len(codec.pack(sent)) - codec.size(sent) < 3 * 64


@pytest.mark.parametrize("take", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[1]])
def test_tensors_that_are_not_contiguous_are_packed(take):
    x = take(torch.arange(12.0).view(3, 4))
    received = unpack(codec_of(Everything).pack(Everything(x, 1, x, 2.0, True)))
    assert torch.equal(received.first, x)


def test_a_message_without_fields_is_packed():
    assert type(unpack(codec_of(Bare).pack(Bare()))) is Bare


def test_a_copy_does_not_see_what_the_sender_does_later():
    x = torch.ones(3)
    sent = Everything(x, 1, x[:2], 2.0, True)
    copied = codec_of(Everything).copy(sent)
    packed = codec_of(Everything).pack(sent)
    x.zero_()
    assert copied.first.tolist() == [1, 1, 1]
    assert unpack(packed).second.tolist() == [1, 1]


def test_tensors_are_views_of_the_bytes():
    packed = codec_of(Everything).pack(Everything(torch.ones(3), 0, torch.ones(1), 0.0, False))
    received = unpack(packed)
    received.first.fill_(5)
    assert unpack(packed).first.tolist() == [5, 5, 5]


def test_tensors_are_aligned():
    packed = codec_of(Everything).pack(Everything(torch.ones(3), 0, torch.ones(1), 0.0, False))
    base = torch.frombuffer(packed, dtype=torch.uint8).data_ptr()
    received = unpack(packed)
    assert (received.first.data_ptr() - base) % 64 == 0
    assert (received.second.data_ptr() - base) % 64 == 0


@given(everything, st.data())
def test_truncated_or_lengthened_bytes_are_refused(sent, data):
    packed = codec_of(Everything).pack(sent)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(MessageError):
        unpack(packed[:cut])
    with pytest.raises(MessageError, match=f"where {len(packed)} are needed"):
        unpack(packed + bytes(1 + cut))


@given(st.binary(max_size=400))
def test_garbage_is_refused_as_no_message(noise):
    with pytest.raises(MessageError):
        unpack(bytearray(noise))


@settings(max_examples=300)
@given(everything, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1))
def test_damaged_bytes_give_a_message_or_a_message_error(sent, damage):
    packed = codec_of(Everything).pack(sent)
    for place, value in damage:
        packed[4 + place % (len(packed) - 4)] = value
    with suppress(MessageError):
        assert type(unpack(packed)) is Everything


@pytest.mark.parametrize(
    "shape", [(2**62, 2**62, 4), (2**63 - 1,), (2**62, 2**62, 0), (1, 1, 10**6), (-1,), (0, -5)]
)
def test_shapes_that_overflow_are_refused(shape):
    codec = codec_of(Everything)
    packed = codec.pack(Everything(torch.ones(1), 0, torch.ones(1), 0.0, False))
    # After the kind come the three numbers, then the first tensor: dtype, dimensions, extents.
    start = 4 + struct.calcsize("<qd?")
    struct.pack_into("<BB4q", packed, start, 0, len(shape), *shape, *(0,) * (4 - len(shape)))
    with pytest.raises(MessageError, match="first"):
        unpack(packed)


def test_an_unknown_kind_is_refused_by_number():
    with pytest.raises(MessageError, match="unknown kind of message 0xdeadbeef"):
        unpack(bytearray(struct.pack("<I", 0xDEADBEEF)))


@pytest.mark.parametrize("hint", [str, "list[int]", dict, "Tensor | None", object])
def test_a_field_of_another_type_is_refused(hint):
    with pytest.raises(MessageError, match=r"Wrong.what is declared .*Tensor, int, float and bool"):
        message(type("Wrong", (), {"__annotations__": {"what": hint}}))


def test_a_class_without_the_decorator_is_no_message():
    class Plain:
        pass

    with pytest.raises(MessageError, match=r"Plain is not a message; declare .*@offbeat.message"):
        codec_of(Plain)


def test_messages_are_frozen():
    with pytest.raises(AttributeError):
        Bare().anything = 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"whole": 1.5}, "whole"),
        ({"whole": torch.ones(1)}, "whole"),
        ({"real": "2"}, "real"),
        ({"real": None}, "real"),
        ({"first": 3.0}, "first"),
        ({"first": None}, "first"),
    ],
)
@pytest.mark.parametrize("how", ["pack", "copy"])
def test_values_that_are_not_of_the_declared_type_are_refused(change, text, how):
    x = torch.ones(2)
    fields = {"first": x, "whole": 1, "second": x, "real": 1.0, "flag": True}
    with pytest.raises(MessageError, match=rf"Everything\.{text} is declared"):
        getattr(codec_of(Everything), how)(Everything(**(fields | change)))


def test_a_number_out_of_range_is_refused():
    sent = Everything(torch.ones(1), 2**63, torch.ones(1), 1.0, True)
    with pytest.raises(MessageError, match=r"out of range .*whole = 9223372036854775808"):
        codec_of(Everything).pack(sent)


@pytest.mark.parametrize("tensor", [torch.ones(1, 1, 1, 1, 1), torch.ones(1, dtype=torch.cfloat)])
def test_tensors_that_do_not_fit_the_wire_are_refused(tensor):
    with pytest.raises(MessageError, match=r"Everything\.first is a .* tensor of .* dimensions"):
        codec_of(Everything).pack(Everything(tensor, 1, torch.ones(1), 1.0, True))


def test_a_message_declared_inside_a_function_finds_its_local_names():
    Number = int

    @message
    class Local:
        count: Number

    assert unpack(codec_of(Local).pack(Local(7))).count == 7


def test_random_bytes_after_a_true_kind_never_raise_anything_else():
    rng = random.Random(0)
    kind = struct.pack("<I", codec_of(Everything).kind)
    for _ in range(2000):
        packed = bytearray(kind + rng.randbytes(rng.randrange(400)))
        with pytest.raises(MessageError):
            unpack(packed)


def test_a_message_goes_to_the_device_of_its_receiver():
    sent = Everything(torch.ones(2), 1, torch.ones(3), 2.0, True)
    codec = codec_of(Everything)
    assert codec.to(sent, torch.device("cpu")) is sent
    moved = codec.to(sent, torch.device("meta"))
    assert moved.first.is_meta
    assert moved.second.is_meta
    assert (moved.whole, moved.real, moved.flag) == (1, 2.0, True)
    assert not sent.first.is_meta
