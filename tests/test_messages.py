import random
import struct
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offbeat.messages import DTYPES, MessageError, codec_of, message, unpack
from offbeat.runtime.slots import Pool


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


def wire(sent, pool=None):
    """The parts of a message as they arrive: writable bytes, one for each."""
    parts = codec_of(type(sent)).parts(sent, pool)
    return [bytearray(p) if isinstance(p, bytes) else bytes_of(p) for p in parts]


def bytes_of(tensor):
    assert tensor.is_contiguous()
    return bytearray(tensor.view(-1).view(torch.uint8).numpy().tobytes())


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
def test_unpack_gives_back_what_was_sent(sent):
    received = unpack(wire(sent))
    assert type(received) is Everything
    assert equal(sent, received)


@given(everything)
def test_size_is_that_of_all_parts(sent):
    assert sum(map(len, wire(sent))) == codec_of(Everything).size(sent)


@pytest.mark.parametrize("take", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[1]])
@pytest.mark.parametrize("pooled", [False, True])
def test_tensors_that_are_not_contiguous_are_sent(take, pooled):
    x = take(torch.arange(300_000.0).view(3, 100_000))
    pool = Pool() if pooled else None
    received = unpack(wire(Everything(x, 1, x, 2.0, True), pool))
    assert torch.equal(received.first, x)
    if pool is not None:
        assert (pool.total_bytes > 0) is (not x.is_contiguous())


def test_tensors_that_need_no_copy_are_sent_as_they_are():
    x = torch.ones(3)
    learned = x.clone().requires_grad_()
    _, first, second = codec_of(Everything).parts(Everything(x, 1, learned, 2.0, True))
    assert first is x
    assert second.data_ptr() == learned.data_ptr()
    assert not second.requires_grad


def test_a_message_without_fields_is_sent():
    assert type(unpack(wire(Bare()))) is Bare


def test_a_copy_does_not_see_what_the_sender_does_later():
    x = torch.ones(3)
    sent = Everything(x, 1, x[:2], 2.0, True)
    copied = codec_of(Everything).copy(sent)
    x.zero_()
    assert copied.first.tolist() == [1, 1, 1]


def test_tensors_are_views_of_the_parts():
    parts = wire(Everything(torch.ones(3), 0, torch.ones(1), 0.0, False))
    received = unpack(parts)
    received.first.fill_(5)
    assert unpack(parts).first.tolist() == [5, 5, 5]


@given(everything, st.data())
def test_truncated_lengthened_and_missing_parts_are_refused(sent, data):
    parts = wire(sent)
    number = data.draw(st.integers(0, len(parts) - 1))
    part = parts[number]
    for changed in ([part[:-1]] if part else []) + [part + b"x"]:
        with pytest.raises(MessageError, match="bytes"):
            unpack([*parts[:number], changed, *parts[number + 1 :]])
    for few in (parts[:number], [*parts, part]):
        with pytest.raises(MessageError):
            unpack(few)


@given(st.lists(st.binary(max_size=200)))
def test_garbage_is_refused_as_no_message(noise):
    with pytest.raises(MessageError):
        unpack([bytearray(part) for part in noise])


@settings(max_examples=300)
@given(everything, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1))
def test_damaged_bytes_give_a_message_or_a_message_error(sent, damage):
    parts = wire(sent)
    for place, value in damage:
        parts[0][4 + place % (len(parts[0]) - 4)] = value
    with suppress(MessageError):
        assert type(unpack(parts)) is Everything


@pytest.mark.parametrize(
    "shape", [(2**62, 2**62, 4), (2**63 - 1,), (2**62, 2**62, 0), (1, 1, 10**6), (-1,), (0, -5)]
)
def test_shapes_that_overflow_are_refused(shape):
    parts = wire(Everything(torch.ones(1), 0, torch.ones(1), 0.0, False))
    # After the kind come the three numbers, then the first tensor: dtype, dimensions, extents.
    start = 4 + struct.calcsize("<qd?")
    struct.pack_into("<BB4q", parts[0], start, 0, len(shape), *shape, *(0,) * (4 - len(shape)))
    with pytest.raises(MessageError, match="first"):
        unpack(parts)


def test_an_unknown_kind_is_refused_by_number():
    with pytest.raises(MessageError, match="unknown kind of message 0xdeadbeef"):
        unpack([bytearray(struct.pack("<I", 0xDEADBEEF))])


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
@pytest.mark.parametrize("how", ["parts", "copy"])
def test_values_that_are_not_of_the_declared_type_are_refused(change, text, how):
    x = torch.ones(2)
    fields = {"first": x, "whole": 1, "second": x, "real": 1.0, "flag": True}
    with pytest.raises(MessageError, match=rf"Everything\.{text} is declared"):
        getattr(codec_of(Everything), how)(Everything(**(fields | change)))


def test_a_number_out_of_range_is_refused():
    sent = Everything(torch.ones(1), 2**63, torch.ones(1), 1.0, True)
    with pytest.raises(MessageError, match=r"out of range .*whole = 9223372036854775808"):
        codec_of(Everything).parts(sent)


@pytest.mark.parametrize("tensor", [torch.ones(1, 1, 1, 1, 1), torch.ones(1, dtype=torch.cfloat)])
def test_tensors_that_do_not_fit_the_wire_are_refused(tensor):
    with pytest.raises(MessageError, match=r"Everything\.first is a .* tensor of .* dimensions"):
        codec_of(Everything).parts(Everything(tensor, 1, torch.ones(1), 1.0, True))


def test_a_message_declared_inside_a_function_finds_its_local_names():
    Number = int

    @message
    class Local:
        count: Number

    assert unpack(wire(Local(7))).count == 7


def test_random_bytes_after_a_true_kind_never_raise_anything_else():
    rng = random.Random(0)
    kind = struct.pack("<I", codec_of(Everything).kind)
    size = codec_of(Everything).header.size
    for _ in range(2000):
        bodies = [bytearray(rng.randbytes(rng.randrange(400))) for _ in range(2)]
        with pytest.raises(MessageError):
            unpack([bytearray(kind + rng.randbytes(size - len(kind))), *bodies])


def test_a_message_goes_to_the_device_of_its_receiver():
    sent = Everything(torch.ones(2), 1, torch.ones(3), 2.0, True)
    codec = codec_of(Everything)
    assert codec.to(sent, torch.device("cpu")) is sent
    moved = codec.to(sent, torch.device("meta"))
    assert moved.first.is_meta
    assert moved.second.is_meta
    assert (moved.whole, moved.real, moved.flag) == (1, 2.0, True)
    assert not sent.first.is_meta
