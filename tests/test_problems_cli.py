import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from offbeat.cli import main
from offbeat.cli.problems import problems_tables
from offbeat.methods import SGD
from offbeat.problems import PROBLEMS, LeastSquares, Split, Supervised
from offbeat.runs import load_parameters
from offbeat.runtime.world import World
from offbeat.testing import small_experiment

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "my_problem.py"


@pytest.mark.parametrize(
    "command",
    [["simulate", "--cluster.workers", "2"], ["run", "--workers", "2"]],
    ids=["simulate", "run"],
)
def test_a_problem_of_the_users_own_file_trains_and_repeats(tmp_path, capsys, command):
    common = ["--method", "AllReduceSGD", "--optimizer.lr", "0.3", "--budget.samples", "12000"]
    own = ["--problem", f"{EXAMPLE}:spirals", "--problem.noise", "0.01"]
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*command, *common, *own, "--out", str(first)]) == 0, capsys.readouterr().err
    kept = (first / "experiment.yaml").read_text()
    assert f"{EXAMPLE}:spirals" in kept
    assert main([command[0], "--config", str(first / "experiment.yaml"), "--out", str(again)]) == 0
    out = capsys.readouterr().out
    accuracies = [line.split()[2] for line in out.splitlines() if line.startswith("test ")]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
    assert float(accuracies[0].strip("%,")) > 80
    assert (again / "experiment.yaml").read_text() == kept


def test_a_problem_of_the_users_own_file_is_compared(tmp_path, capsys):
    options = ["--problem", f"{EXAMPLE}:spirals", "--cluster.workers", "2"]
    budget = ["--budget.samples", "600", "--out", str(tmp_path / "c")]
    assert main(["compare", "SGD", "LocalSGD", *options, *budget]) == 0, capsys.readouterr().err
    assert "LocalSGD" in capsys.readouterr().out
    assert f"{EXAMPLE}:spirals" in (tmp_path / "c/LocalSGD/experiment.yaml").read_text()


def test_least_squares_with_more_dimensions_than_samples_from_the_command_line(tmp_path, capsys):
    settings = ["--problem.dimension", "30", "--problem.samples", "10", "--problem.double", "true"]
    settings += ["--problem.batch_size", "10", "--problem.condition", "4"]
    out = tmp_path / "run"
    arguments = ["simulate", "--problem", "LeastSquares", *settings, "--method", "SGD"]
    arguments += ["--cluster.workers", "1", "--optimizer.lr", "1", "--budget.samples", "2000"]
    assert main([*arguments, "--out", str(out)]) == 0, capsys.readouterr().err
    problem = LeastSquares(dimension=30, samples=10, double=True, batch_size=10, condition=4)
    world = World(small_experiment(SGD(), workers=1, problem=problem))
    torch.testing.assert_close(load_parameters(out, world.layout), problem.optimum())


def linear(targets, test=None):
    inputs = torch.zeros(len(targets), 2)
    train = Split(inputs, targets)
    return Supervised(
        model_factory=lambda: nn.Linear(2, 10),
        train=train,
        test=train if test is None else Split(inputs[: len(test)], test),
        loss_function=F.cross_entropy,
        batch_size=4,
    )


@pytest.mark.parametrize(
    "problem",
    [
        linear(torch.arange(40) % 13),
        linear(torch.arange(40) % 10, test=torch.tensor([1, 12, 12])),
    ],
    ids=["train", "test"],
)
def test_classes_that_the_model_has_no_output_for_are_refused(problem):
    with pytest.raises(
        ValueError, match=r"^Supervised: targets hold class 1[0-2] but the model has"
    ):
        World(small_experiment(SGD(), problem=problem))


def test_the_line_says_which_classes_there_may_be():
    with pytest.raises(ValueError, match=r"has 10 outputs, for classes 0 to 9$"):
        World(small_experiment(SGD(), problem=linear(torch.arange(40) % 11)))


def test_problems_are_listed_with_their_networks_and_whether_they_are_here(
    capsys, home, monkeypatch, tmp_path
):
    monkeypatch.setenv("COLUMNS", "150")
    (tmp_path / "input.txt").touch()
    monkeypatch.setenv("OFFBEAT_DATA", str(tmp_path))
    assert main(["problems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1:] if not line.startswith(" ")}
    assert set(rows) == set(PROBLEMS)
    assert "yes" in rows["Digits"]
    assert "no" in rows["MNIST"]
    assert "yes" in rows["CharacterText"]
    assert "61,706" in rows["MNIST"]
    assert any(line.split() == ["resnet20-bn", "269,722"] for line in lines)


def test_problems_fit_the_terminal_with_every_column_whole(home):
    tables = problems_tables(80)
    assert len(tables) == 2
    titles = [str(column.header) for table in tables for column in table.columns]
    assert set(titles) == {
        *("problem", "samples", "inputs", "classes", "here"),
        *("data from", "network", "parameters"),
    }
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in tables:
        console.print(table)
    printed = console.export_text()
    assert "…" not in printed
    assert all(printed.count(f"{name} ") == 2 for name in ("LeastSquares", "CharacterText"))
    assert len(problems_tables(130)) == 1


def test_problems_takes_no_options(capsys):
    assert main(["problems", "MNIST"]) == 2
    assert capsys.readouterr().err == "offbeat: `offbeat problems` takes no options, not MNIST\n"
