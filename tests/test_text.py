import lzma

import pytest
import torch

from offbeat.problems import CharacterText, DataError
from offbeat.problems.text import windows
from published import REAL_DATA, one_line


def written(tmp_path, content):
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_windows_follow_each_other_and_targets_are_the_next_ones():
    split = windows(torch.arange(10), 3)
    assert split.inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert split.targets.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert len(windows(torch.arange(9), 3)) == 2  # the last one lacks its next


def test_parts_are_stretches_of_the_text_and_characters_are_in_unicode_order(tmp_path):
    text = "zaß€" * 100
    problem = CharacterText(text=written(tmp_path, text), length=9, validation=0.25, width=8)
    data = problem.data()
    letters = "".join(sorted(set(text)))

    def reading(numbers):
        return "".join(letters[k] for k in numbers.flatten().tolist())

    assert reading(data.train.inputs) == text[: 29 * 9]  # of 270 characters
    assert reading(data.train.targets) == text[1 : 29 * 9 + 1]
    assert reading(data.validation.inputs) == text[270 : 270 + 9 * 9]
    assert reading(data.test.inputs) == text[360 : 360 + 4 * 9]
    assert problem.model()(data.test.inputs).shape == (4, 4, 9)


def test_long_parts_are_evaluated_at_even_distances(tmp_path):
    text = "abcdefghij" * 40
    path = written(tmp_path, text)
    few = CharacterText(text=path, length=3, evaluated=4).data()
    every = CharacterText(text=path, length=3, evaluated=None).data()
    assert len(every.test) == 13
    assert torch.equal(few.test.inputs, every.test.inputs[[0, 3, 6, 9]])
    assert len(few.validation) == 4
    assert torch.equal(few.train.inputs, every.train.inputs)


def test_loss_and_accuracy_are_those_of_a_character():
    outputs = torch.zeros(1, 4, 3)
    outputs[0, 2, :2] = 1.0
    targets = torch.tensor([[2, 2, 2]])
    metrics = CharacterText().evaluate(outputs, targets)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    right = torch.tensor([0.0, 0, 1, 0]).log_softmax(0)[2].item()
    expected = -(2 * right + torch.zeros(4).log_softmax(0)[0].item()) / 3
    assert metrics["loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "has 0 characters, 0 of them in its smallest part, too few for a sample of 9"),
        ("ab" * 40, "has 80 characters, 7 of them in its smallest part, too few for a sample of 9"),
        (b"ab\xff", "is no UTF-8 text: invalid start byte at byte 2"),
    ],
)
def test_texts_that_cannot_be_used_are_named(tmp_path, content, text):
    path = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        CharacterText(text=path, length=9).data()
    assert one_line(caught).startswith(f"{path} {text}")


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read text .*/none: No such file"):
        CharacterText(text=str(tmp_path / "none")).model()


def test_a_text_that_is_not_tiny_shakespeare_is_not_taken_for_it(tmp_path, home):
    assert not CharacterText(data_dir=str(tmp_path)).available()
    (tmp_path / "input.txt").write_text("First Citizen:\n")
    assert CharacterText(data_dir=str(tmp_path)).available()
    with pytest.raises(DataError, match=r"input.txt is truncated, corrupt or another file: 15 by"):
        CharacterText(data_dir=str(tmp_path)).data()


@pytest.mark.parametrize(("network", "rate"), [("transformer", 3e-3), ("gru", 1e-2)])
def test_both_networks_learn_an_alphabet(tmp_path, network, rate):
    path = written(tmp_path, "abcdefgh" * 100)
    problem = CharacterText(text=path, network=network, length=8, width=16, layers=1)
    torch.manual_seed(0)
    model, data = problem.model(), problem.data()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(60):
        optimizer.zero_grad()
        problem.loss(model(data.train.inputs), data.train.targets).backward()
        optimizer.step()
    metrics = problem.evaluate(model(data.test.inputs), data.test.targets)
    assert metrics["accuracy"] > 0.95


needs_shakespeare = pytest.mark.skipif(
    not (REAL_DATA / "tinyshakespeare").is_dir(), reason="no Tiny Shakespeare in ../shared/data"
)


@needs_shakespeare
def test_tiny_shakespeare_is_all_there(tmp_path):
    packed = REAL_DATA / "tinyshakespeare" / "input.txt.xz"
    (tmp_path / "input.txt").write_bytes(lzma.decompress(packed.read_bytes()))
    data = CharacterText(data_dir=str(tmp_path), evaluated=None).data()
    assert sum(len(p) for p in (data.train, data.validation, data.test)) == 14_116 + 1_568 + 1_742
    largest = max(int(p.inputs.max()) for p in (data.train, data.validation, data.test))
    assert largest == 65 - 1
    # "First": characters are numbered from newline and space on.
    assert data.train.inputs[0, :5].tolist() == [18, 47, 56, 57, 58]
