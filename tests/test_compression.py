"""Compressors: what they lose, what they cost, and that chance and bytes are as they say."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.compression import E3M0, QSGD, Compressed, Half, Identity, RandomK, Sign, TopK
from offbeat.compression.e3m0 import LEVELS
from offbeat.compression.packing import WIDTHS, pack, unpack
from offbeat.compression.qsgd import quantized
from offbeat.messages import codec_of
from offbeat.messages import unpack as unpack_message
from offbeat.parameters import Layout

# 1,003 numbers: no whole bytes of signs, no whole bucket; a tensor of one number, an empty one.
LAYOUT = Layout(("matrix", "one", "none", "vector"), ((30, 20), (1,), (0, 3), (402,)))
D = LAYOUT.size
COMPRESSORS = [
    Identity(),
    Half(),
    Half(dtype="bfloat16"),
    TopK(),
    TopK(fraction=0.1),
    TopK(fraction=1.0),
    RandomK(),
    RandomK(fraction=0.3),
    RandomK(fraction=0.6, unbiased=True),
    Sign(),
    E3M0(),
    QSGD(),
    QSGD(bits=4, bucket=100),
    QSGD(bits=2, bucket=100, unbiased=False),
    QSGD(bits=4, bucket=5000),
]
every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)


def vector(seed=0, dtype=torch.float64, size=D):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * torch.linspace(0.01, 3.0, size, dtype=torch.float64)).to(dtype)


def sent(compressor, x, seed=0, layout=LAYOUT):
    """Q(x), which must not change x."""
    before = x.clone()
    compressed = compressor.compress(x, layout, random.Random(seed))
    result = compressor.decompress(compressed, layout)
    assert torch.allclose(x, before, rtol=0, atol=0, equal_nan=True)
    return result


def mean_square_error(compressor, x, draws=200):
    """E|Q(x) - x|^2 / |x|^2, and E Q(x) (d,)."""
    values = torch.stack([sent(compressor, x, seed) for seed in range(draws)])
    error = (values - x).square().sum(dim=1).mean() / x.square().sum()
    return error.item(), values.mean(dim=0)


# What holds of every one


@every_compressor
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_vector_comes_back_in_its_shape_and_type_and_is_new(compressor, dtype):
    x = vector(dtype=dtype)
    result = sent(compressor, x)
    assert (result.shape, result.dtype) == (x.shape, dtype)
    assert result.isfinite().all()
    compressed = compressor.compress(x, LAYOUT, random.Random(0))
    copy = codec_of(Compressed).copy(compressed)
    compressor.decompress(compressed, LAYOUT).zero_()
    assert torch.equal(compressed.coded, copy.coded)


@every_compressor
def test_the_reader_of_the_wire_has_the_bits_of_the_sender(compressor):
    compressed = compressor.compress(vector(), LAYOUT, random.Random(3))
    header, *tensors = codec_of(Compressed).parts(compressed)
    raw = [bytearray(t.contiguous().view(torch.uint8).numpy().tobytes()) for t in tensors]
    received = unpack_message([bytearray(header), *raw])
    here, there = (compressor.decompress(c, LAYOUT) for c in (compressed, received))
    assert torch.equal(here, there)


@every_compressor
def test_zero_stays_zero(compressor):
    assert not sent(compressor, torch.zeros(D)).any()


@every_compressor
def test_what_is_not_a_number_is_not_hidden(compressor):
    x = vector()
    x[700] = math.nan
    seen = [sent(compressor, x, seed).isnan().any() for seed in range(600)]
    if isinstance(compressor, RandomK):
        assert any(seen)
    else:
        assert all(seen)


@every_compressor
def test_the_same_seed_is_the_same_draw(compressor):
    x = vector()
    assert torch.equal(sent(compressor, x, 1), sent(compressor, x, 1))
    chance = isinstance(compressor, RandomK | QSGD)
    assert torch.equal(sent(compressor, x, 1), sent(compressor, x, 2)) != chance


@every_compressor
def test_what_says_that_it_contracts_does(compressor):
    if compressor.contracts:
        for x in (torch.ones(D, dtype=torch.float64), vector()):
            assert mean_square_error(compressor, x, draws=50)[0] < 1.0


@pytest.mark.parametrize(
    "compressor", [QSGD(bits=4, bucket=5000), RandomK(fraction=0.4, unbiased=True)], ids=str
)
def test_what_says_that_it_does_not_contract_does_not(compressor):
    assert not compressor.contracts
    assert mean_square_error(compressor, vector(), draws=50)[0] > 1.0


# Bytes

TAKEN = {  # of 1,003 float32 numbers in 4 tensors
    Identity(): 4 * 1003,
    Half(): 2 * 1003,
    TopK(): 11 * (4 + 4),
    TopK(fraction=0.1): 101 * (4 + 4),
    RandomK(): 11 * 4 + 8,
    Sign(): 126 + 4 * 4,
    E3M0(): 502 + 4,
    QSGD(): 1003 + 2 * 4,
    QSGD(bits=4): 502 + 2 * 4,
    QSGD(bits=2, bucket=100): 251 + 11 * 4,
}


@pytest.mark.parametrize("compressor", TAKEN, ids=str)
def test_the_bytes_on_the_wire_are_those_of_the_table(compressor):
    x = vector(dtype=torch.float32)
    codec = codec_of(Compressed)
    message = compressor.compress(x, LAYOUT, random.Random(0))
    assert codec.size(message) - codec.header.size == TAKEN[compressor]
    assert sum(map(len_of, codec.parts(message)[1:])) == TAKEN[compressor]


def len_of(tensor):
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_packed_numbers_come_back(bits, count):
    numbers = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(1))
    packed = pack(numbers.to(torch.uint8), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(count * bits / 8)
    assert unpack(packed, bits, count).tolist() == numbers.tolist()


def test_packed_bits_are_those_of_numpy():
    import numpy as np

    bits = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 1, 1], dtype=torch.uint8)
    assert pack(bits, 1).tolist() == np.packbits(bits.numpy(), bitorder="little").tolist()


# Each by its formula


def test_top_k_is_the_largest_coordinates_by_hand():
    layout = Layout(("a", "b"), ((3,), (2,)))
    x = torch.tensor([1.0, -5.0, 0.5, 3.0, -2.0])
    assert sent(TopK(fraction=0.4), x, layout=layout).tolist() == [0, -5, 0, 3, 0]
    assert sent(TopK(fraction=0.41), x, layout=layout).tolist() == [0, -5, 0, 3, -2]
    assert sent(TopK(fraction=0.01), x, layout=layout).tolist() == [0, -5, 0, 0, 0]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_top_k_contracts_by_one_minus_k_over_d(fraction):
    k = math.ceil(fraction * D)
    for x in (vector(1), torch.ones(D, dtype=torch.float64)):
        error = (sent(TopK(fraction=fraction), x) - x).square().sum()
        assert error <= (1 - k / D) * x.square().sum() * (1 + 1e-12)
    # Nothing does worse than coordinates that are all alike, and there it is exact.
    assert error == pytest.approx(D - k)


def test_whole_numbers_of_coordinates_are_not_rounded_up():
    x = torch.arange(100.0)
    layout = Layout(("x",), ((100,),))
    for percent in range(1, 101):
        assert sent(TopK(fraction=percent / 100), x + 1, layout=layout).count_nonzero() == percent


def test_random_k_errs_by_one_minus_k_over_d_in_the_mean_and_unbiased_by_d_over_k_minus_one():
    x, k = vector(), 301
    error, mean = mean_square_error(RandomK(fraction=0.3), x, draws=800)
    assert error == pytest.approx(1 - k / D, rel=0.02)
    torch.testing.assert_close(mean, x * k / D, rtol=0.2, atol=1e-3)
    error, mean = mean_square_error(RandomK(fraction=0.3, unbiased=True), x, draws=800)
    assert error == pytest.approx(D / k - 1, rel=0.02)
    torch.testing.assert_close(mean, x, rtol=0.2, atol=1e-3)


def test_sign_is_the_mean_modulus_of_each_tensor_by_hand():
    layout = Layout(("a", "b"), ((2, 2), (3,)))
    x = torch.tensor([1.0, -2.0, 3.0, 0.0, -10.0, -20.0, 60.0])
    assert sent(Sign(), x, layout=layout).tolist() == [1.5, -1.5, 1.5, 1.5, -30, -30, 30]


def test_sign_loses_what_its_formula_says():
    x = vector()
    x[3] = 0.0
    result = sent(Sign(), x)
    for span, size in zip(LAYOUT.spans, LAYOUT.sizes, strict=True):
        part, left = x[span], result[span] - x[span]
        if size:
            expected = part.square().sum() - part.abs().sum() ** 2 / size
            assert left.square().sum().item() == pytest.approx(expected.item(), abs=1e-10)


def test_e3m0_s_numbers_are_seven_powers_of_two_their_negatives_and_zero():
    exact = torch.tensor([*LEVELS, *(-level for level in LEVELS[1:])])
    layout = Layout(("x",), ((15,),))
    assert exact.abs().unique().tolist() == [0, *(2.0**-k for k in range(6, -1, -1))]
    assert torch.equal(sent(E3M0(), 3.0 * exact, layout=layout), 3.0 * exact)


def test_e3m0_s_numbers_are_two_to_a_byte_the_first_in_its_lower_half():
    x = torch.tensor([1.0, -0.5, 2.0])
    compressed = E3M0().compress(x, Layout(("x",), ((3,),)), random.Random(0))
    assert compressed.coded.tolist() == [6 | (5 + 8) << 4, 7]
    assert compressed.side.tolist() == [2.0]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=0, max_size=9))
def test_e3m0_takes_the_nearest_of_its_numbers(values):
    x = torch.tensor(values, dtype=torch.float64)
    result = sent(E3M0(), x, layout=Layout(("x",), ((len(x),),)))
    numbers = torch.tensor([*LEVELS, *(-level for level in LEVELS)], dtype=torch.float64)
    distances = (x[:, None] - numbers * max(map(abs, values), default=0.0)).abs()
    torch.testing.assert_close((result - x).abs(), distances.min(dim=1).values)


@pytest.mark.parametrize("compressor", [QSGD(bits=2, bucket=100), QSGD(bits=4), QSGD()], ids=str)
def test_qsgd_is_unbiased_and_within_its_bound(compressor):
    x, draws = vector(), 1000
    error, mean = mean_square_error(compressor, x, draws)
    assert 0 < error <= compressor.variance
    # The mean of so many draws is off by its standard deviation, sqrt(error / draws) |x|.
    off = (mean - x).norm() / x.norm()
    assert off.item() == pytest.approx(math.sqrt(error / draws), rel=0.15)


def test_qsgd_s_bound_is_that_of_its_lemma():
    assert QSGD(bits=2, bucket=100).variance == 10.0  # sqrt(n) / s
    assert QSGD(bits=8, bucket=127).variance == pytest.approx(1 / 127)  # n / s^2
    assert QSGD(bits=4, bucket=1).variance == pytest.approx(1 / 49)


def test_qsgd_divided_is_the_same_draw_divided_and_contracts_as_said():
    unbiased, divided = QSGD(bits=2, bucket=100), QSGD(bits=2, bucket=100, unbiased=False)
    x, w = vector(), 10.0
    torch.testing.assert_close(sent(divided, x) * (1 + w), sent(unbiased, x), rtol=0, atol=1e-10)
    assert mean_square_error(divided, x)[0] <= 1 - 1 / (1 + w)


def test_quantized_levels_are_those_beside_by_hand():
    x = torch.tensor([[3.0, -4.0, 0.0]])  # Of norm 5: at s = 7 levels 4.2, -5.6 and 0.
    for uniform, expected in ((0.1, [5, -6, 0]), (0.3, [4, -6, 0]), (0.7, [4, -5, 0])):
        levels = quantized(x, torch.tensor([[5.0]]), 7, torch.full((1, 3), uniform))
        assert levels.tolist() == [expected]


def test_no_level_is_beyond_the_last():
    # The reader of half precision has a norm of 8 bits, which may be below the only number.
    x = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    norm = x.to(torch.bfloat16)
    assert (127 * x / norm).max() > 127
    assert quantized(x, norm, 127, torch.zeros_like(x)).max() == 127


def test_qsgd_of_half_precision_draws_small_chances_too():
    # A chance of 127e-5 for each of 511 numbers; one of 8 bits would be 256ths.
    x = torch.full((512,), 1e-5, dtype=torch.bfloat16)
    x[0] = 1.0
    layout = Layout(("x",), ((512,),))
    drawn = sum(sent(QSGD(), x, seed, layout)[1:].count_nonzero() for seed in range(200))
    expected = 200 * 511 * 127e-5
    assert abs(drawn - expected) < 4 * math.sqrt(expected)


def test_half_rounds_as_torch_does_and_keeps_within_its_range():
    x = torch.tensor([1.0 + 2**-12, 1e6, -1e6, 1e-9, 2.0], dtype=torch.float32)
    layout = Layout(("x",), ((5,),))
    assert sent(Half(), x, layout=layout).tolist() == [1.0, 65504.0, -65504.0, 0.0, 2.0]
    assert torch.equal(sent(Half(dtype="bfloat16"), x, layout=layout), x.bfloat16().float())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(fraction=0.0), "fraction is 0; it must be above 0 and at most 1"),
        (lambda: RandomK(fraction=1.5), "fraction is 1.5; it must be above 0 and at most 1"),
        (lambda: QSGD(bits=3), "bits is 3; a sign and its levels take 2, 4 or 8 bits"),
        (lambda: QSGD(bits=1), "bits is 1; a sign and its levels take 2, 4 or 8 bits"),
        (lambda: QSGD(bucket=0), "bucket is 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
