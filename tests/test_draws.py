"""Random numbers whose state of some moment can be had later."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from offbeat.draws import Draws

DRAW: dict[str, Callable[[random.Random], object]] = {
    "random": lambda rng: rng.random(),
    "randrange": lambda rng: rng.randrange(10**30),
    "choice": lambda rng: rng.choice("abcdefg"),
    "choices": lambda rng: rng.choices(range(99), k=5),
    "sample": lambda rng: rng.sample(range(99), 5),
    "gauss": lambda rng: rng.gauss(0.0, 1.0),
    "normalvariate": lambda rng: rng.normalvariate(),
    "expovariate": lambda rng: rng.expovariate(2.0),
    "betavariate": lambda rng: rng.betavariate(2.0, 3.0),
    "getrandbits": lambda rng: rng.getrandbits(77),
    "randbytes": lambda rng: rng.randbytes(9),
    "triangular": lambda rng: rng.triangular(),
}


def shuffled(rng: random.Random) -> list[int]:
    numbers = list(range(20))
    rng.shuffle(numbers)
    return numbers


@pytest.mark.parametrize("draw", [*DRAW.values(), shuffled], ids=[*DRAW, "shuffle"])
def test_whatever_is_drawn_the_state_before_is_kept(draw: Callable[[random.Random], object]):
    rng, plain = Draws("7/3"), random.Random("7/3")
    assert [draw(rng) for _ in range(3)] == [draw(plain) for _ in range(3)]
    rng.keep()
    before = plain.getstate()
    assert rng.kept == before
    assert [draw(rng) for _ in range(3)] == [draw(plain) for _ in range(3)]
    assert rng.kept == before != rng.getstate()
    rng.keep()
    assert rng.kept == rng.getstate()


def test_the_present_state_is_kept_until_one_is_asked_for():
    rng = Draws(1)
    assert rng.kept == rng.getstate()
    rng.random()
    assert rng.kept == rng.getstate()
