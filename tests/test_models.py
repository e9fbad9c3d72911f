import pytest
import torch
from torch import nn

from offbeat.models import (
    IMAGE_NETWORKS,
    CharacterGRU,
    CharacterTransformer,
    ResNet,
    SparseLinear,
    Standardize,
    image_network,
    lenet5,
)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_lenet5_has_the_published_size():
    model = lenet5()
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim > 1]
    assert sizes == [6 * 25, 16 * 6 * 25, 400 * 120, 120 * 84, 84 * 10]
    assert size(model) == 61_706
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


GREY, COLOUR = (1, 28, 28), (3, 32, 32)

# Convolutions, then linear layers; weights and biases.
LENET5 = {
    1: (25 * 6 + 6) + (6 * 25 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84),
    3: (75 * 6 + 6) + (6 * 25 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84),
}
COURSE = (64 * 25 * 64 + 64) + (1600 * 384 + 384) + (384 * 192 + 192)
# First convolution, three stages of blocks of two convolutions; norms have two numbers a map.
RESNET8 = 9 * (2 * 16 * 16 + (16 * 32 + 32 * 32) + (32 * 64 + 64 * 64)) + 2 * (
    3 * 16 + 2 * 32 + 2 * 64
)
RESNET20 = 9 * (6 * 16 * 16 + (16 * 32 + 5 * 32 * 32) + (32 * 64 + 5 * 64 * 64)) + 2 * (
    7 * 16 + 6 * 32 + 6 * 64
)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("lenet5", GREY, 10, LENET5[1] + 850),
        ("lenet5", COLOUR, 10, LENET5[3] + 850),
        ("lenet5", COLOUR, 100, LENET5[3] + 8500),
        ("course-lenet", GREY, 10, 25 * 64 + 64 + COURSE + 1930),
        ("course-lenet", COLOUR, 10, 75 * 64 + 64 + COURSE + 1930),
        ("course-lenet", COLOUR, 100, 75 * 64 + 64 + COURSE + 19300),
        ("resnet8-gn", GREY, 10, 9 * 16 + RESNET8 + 650),
        ("resnet8-bn", COLOUR, 10, 27 * 16 + RESNET8 + 650),
        ("resnet20-gn", COLOUR, 100, 27 * 16 + RESNET20 + 6500),
        ("resnet20-bn", COLOUR, 10, 269_722),  # 0.27M in the paper's table 6
    ],
)
def test_networks_have_the_size_that_was_counted_by_hand(name, shape, classes, expected):
    model = image_network(name, shape, classes)
    assert size(model) == expected
    assert model(torch.zeros(2, *shape)).shape == (2, classes)


def test_every_network_is_named_and_only_batch_norm_keeps_statistics():
    for name in IMAGE_NETWORKS:
        model = image_network(name, COLOUR, 10)
        assert bool(list(model.buffers())) == name.endswith("-bn")


def test_width_multiplies_the_maps_of_a_resnet():
    model = image_network("resnet8-gn", COLOUR, 10, width=4)
    assert model.conv.out_channels == 4
    assert model.linear.in_features == 16
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_resnets_have_certain_depths_only(depth):
    with pytest.raises(ValueError, match=f"must be 8, 14, 20 and so on, not {depth}"):
        ResNet(depth, 3, 10)


def test_a_resnets_convolutions_and_last_layer_are_as_many_as_its_name_says():
    for depth in (8, 20):
        layers = [m for m in ResNet(depth, 3, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth


def test_a_shortcut_leaves_out_pixels_and_appends_zeros():
    block = ResNet(8, 3, 10, width=2).blocks[1]
    nn.init.zeros_(block.conv2.weight)  # what is left is the shortcut
    maps = torch.rand(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[:, :2] = maps[:, :, ::2, ::2]
    torch.testing.assert_close(block(maps), expected)


def test_pixels_are_standardized_by_channel():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    standard = Standardize((0.5, 0.5, 0.1), (0.25, 0.5, 0.1))(images)
    torch.testing.assert_close(standard.flatten(), torch.tensor([-2.0, 1.0, 1.0]))


def test_the_transformer_has_the_size_that_was_counted_by_hand():
    model = CharacterTransformer(65, length=32, width=16, layers=2)
    layer = 2 * 32 + (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16)
    assert size(model) == 65 * 16 + 32 * 16 + 2 * layer + 32 + (16 * 65 + 65)


@pytest.mark.parametrize(
    "model",
    [
        CharacterTransformer(5, length=6, width=8, layers=2),
        CharacterGRU(5, width=8, layers=2),
    ],
)
def test_a_guess_depends_on_what_was_before_and_on_nothing_later(model):
    symbols = torch.tensor([[0, 1, 2, 3, 4, 0]])
    other = torch.tensor([[0, 1, 2, 0, 4, 0]])
    before, after = model(symbols), model(other)
    assert before.shape == (1, 5, 6)
    torch.testing.assert_close(before[..., :3], after[..., :3], rtol=0, atol=1e-6)
    assert (before[..., 3:] - after[..., 3:]).abs().amax(1).min() > 1e-4


def test_the_gru_has_the_size_that_was_counted_by_hand():
    assert size(CharacterGRU(65, width=8, layers=2)) == 65 * 8 + 2 * 3 * (2 * 64 + 2 * 8) + 9 * 65


def test_a_sparse_sample_is_weighted_at_its_indices_and_so_is_its_gradient():
    model = SparseLinear(6)
    weight = model.weights.weight
    assert not weight.any()
    with torch.no_grad():
        weight.copy_(torch.arange(6.0).view(6, 1))
    samples = torch.tensor([[[1, 2.0], [5, 0.5]], [[3, 1.0], [3, 0.0]]])
    scores = model(samples)
    assert scores.tolist() == [4.5, 3.0]
    [gradient] = torch.autograd.grad(scores.sum(), [weight])
    assert gradient.is_sparse
    gradient = gradient.coalesce()
    assert gradient.indices().tolist() == [[1, 3, 5]]
    assert gradient.values().flatten().tolist() == [2.0, 1.0, 0.5]
