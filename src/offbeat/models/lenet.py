"""LeNets for images of 28x28 and 32x32 pixels."""

from collections import OrderedDict

from torch import nn


def lenet5(channels: int = 1, classes: int = 10, *, padding: int = 2) -> nn.Sequential:
    """LeNet-5 with ReLUs and max-pooling: (N, channels, p, p) to logits (N, classes).

    p is 28 with a `padding` of 2 and 32 with none. It has 61,706 parameters for one channel and
    ten classes. The layers' sizes are those of LeCun, Bottou, Bengio, Haffner (1998), figure 2.
    Differences, as is usual today: ReLU for tanh, maxima for trained averages, every map of the
    second convolution sees every map of the first, and the last layer is linear.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            linear2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            linear3=nn.Linear(84, classes),
        )
    )


def course_lenet(channels: int = 3, classes: int = 100, *, padding: int = 0) -> nn.Sequential:
    """The wide LeNet of course projects on CIFAR: (N, channels, p, p) to logits (N, classes).

    Two convolutions of 64 maps and 5x5 pixels, each with ReLU and 2x2 max-pooling, and linear
    layers of 1600-384-192-classes with ReLUs between; p as for `lenet5`. 815,332 parameters for
    CIFAR-100.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 64, 5, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(64, 64, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(1600, 384),
            relu3=nn.ReLU(),
            linear2=nn.Linear(384, 192),
            relu4=nn.ReLU(),
            linear3=nn.Linear(192, classes),
        )
    )
