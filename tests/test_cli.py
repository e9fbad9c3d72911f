"""The command line: options, config files, exit codes, and what each bad input is told."""

import importlib
import inspect
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

import offbeat
import offbeat.optim
from offbeat.cli import main
from offbeat.cli.main import COMMANDS
from offbeat.cli.methods import FAMILIES, WIDE, methods_table
from offbeat.cli.output import summary
from offbeat.config import build, experiment_parser, load_experiment, merged, parse
from offbeat.experiment import to_config
from offbeat.methods import METHODS
from offbeat.schedule import Polynomial

SMALL = ["--problem", "LeastSquares", "--cluster.workers", "4", "--budget.samples", "640"]

USER_FILE = """
import signal
from dataclasses import dataclass

import torch
from offbeat import Method, Node
from offbeat.problems import Problem, LeastSquares, Split, Supervised


@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    scale: float = 1.0

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        node.apply(gradient.vector * self.scale, taken_at=gradient.version)


@dataclass(frozen=True, kw_only=True)
class Interrupted(Mine):
    async def step(self, node: Node) -> None:
        await super().step(node)
        if node.round == 10:
            signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Deadlocked(Mine):
    async def step(self, node: Node) -> None:
        await node.gradient()
        await node.recv(int)


class WrongShape(LeastSquares):
    def model(self):
        return torch.nn.Linear(self.dimension, 3)


def scaled(samples: int = 40) -> Problem:
    inputs = torch.linspace(-1, 1, samples).reshape(-1, 1)
    split = Split(inputs, 2 * inputs)
    return Supervised(
        model_factory=linear, train=split, test=split,
        loss_function=torch.nn.functional.mse_loss, batch_size=4,
    )


def linear():
    return torch.nn.Linear(1, 1)


def untyped():
    return scaled()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's file, and the folder to work in. Its module is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "my_file.py"
    path.write_text(USER_FILE)
    yield path
    sys.modules.pop("my_file", None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment_of(*options):
    parser = experiment_parser("offbeat simulate")
    return build(parser, parse(parser, options))


def refusal(capsys, *argv):
    """The line that a refused command line is told; it must leave nothing behind."""
    before = set(Path.cwd().iterdir())
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("offbeat: ")
    # __pycache__ is Python's, of an imported file.
    assert {p for p in Path.cwd().iterdir() if p.name != "__pycache__"} == before
    return lines[0].removeprefix("offbeat: ")


# Options


def test_classes_are_named_shortly_and_have_settings():
    experiment = experiment_of(
        *("--method", "StochasticGradientPush", "--method.topology", "Ring"),
        *("--optimizer", "torch.optim.Adam", "--optimizer.lr", "1e-3"),
        *("--cluster.faults", "[{kind: crash, rank: 1, at: 2.0}]", "--cluster.slow", "{3: 4.0}"),
        *("--schedule", "Cosine", "--schedule.total", "1000"),
    )
    assert experiment.method == offbeat.methods.StochasticGradientPush(
        topology=offbeat.topologies.Ring()
    )
    assert experiment.optimizer.func is torch.optim.Adam
    assert experiment.optimizer.keywords == {"lr": 1e-3}
    assert experiment.cluster.faults == (offbeat.Fault(kind="crash", rank=1, at=2.0),)
    assert experiment.cluster.slow == {3: 4.0}
    assert experiment.schedule.total == 1000


@pytest.mark.parametrize("name", ["LAMB", "offbeat.optim.LAMB"])
def test_offbeat_s_own_optimizers_are_named_as_torch_s(name: str):
    experiment = experiment_of(
        *("--method", "SGD", "--optimizer", name, "--optimizer.norm_bounds", "[0, 10]"),
        *("--schedule", "Polynomial(total=1000, warmup=100)"),
    )
    assert experiment.optimizer.func is offbeat.optim.LAMB
    assert experiment.optimizer.keywords == {"lr": 0.001, "norm_bounds": (0, 10)}
    assert experiment.schedule == Polynomial(total=1000, warmup=100)


def test_another_class_starts_from_its_own_defaults(here):
    Path("sgd.yaml").write_text(
        "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3, momentum: 0.9}}"
    )
    adam = experiment_of("--method", "SGD", "--config", "sgd.yaml", "--optimizer", "Adam")
    assert adam.optimizer.keywords == {"lr": 1e-3}
    sgd = experiment_of("--method", "SGD", "--config", "sgd.yaml", "--optimizer.lr", "0.5")
    assert sgd.optimizer.keywords == {"lr": 0.5, "momentum": 0.9}


def test_options_win_over_config_files_and_later_files_over_earlier(here):
    Path("a.yaml").write_text("seed: 1\ncluster: {workers: 3, latency: 0.5}\n")
    Path("b.yaml").write_text("seed: 2\ncluster: {workers: 5}\n")
    options = ["--seed", "7", "--method", "SGD", "--config", "a.yaml", "--config=b.yaml"]
    experiment = experiment_of(*options)
    assert experiment.seed == 7
    assert (experiment.cluster.workers, experiment.cluster.latency) == (5, 0.5)


def test_classes_are_named_as_calls():
    experiment = experiment_of(
        *("--method", "LocalSGD(local_steps=4)", "--cluster.compute", "Constant(seconds=1.0)"),
        *("--optimizer=SGD(lr=0.3, momentum=0.9)", "--optimizer.lr", "0.5"),
    )
    assert experiment.method == offbeat.methods.LocalSGD(local_steps=4)
    assert experiment.cluster.compute == offbeat.cluster.Constant(seconds=1.0)
    assert experiment.optimizer.keywords == {"lr": 0.5, "momentum": 0.9}


@pytest.mark.parametrize("options", [["--workers", "3"], ["--workers=3"]])
def test_workers_are_those_of_the_cluster(options):
    assert experiment_of("--method", "SGD", *options).cluster.workers == 3


def test_a_single_step_is_no_steps():
    problem = offbeat.problems.LeastSquares()
    budget = offbeat.Budget(samples=problem.batch_size)
    cluster = offbeat.Cluster(workers=1)
    run = offbeat.simulate(offbeat.methods.SGD(), problem, cluster=cluster, budget=budget)
    assert dict(summary(run))["after"].endswith(" samples, 1 step")


def test_a_budget_of_seconds_replaces_the_default_budget_of_samples():
    budget = experiment_of("--method", "SGD", "--budget.seconds", "2").budget
    assert (budget.samples, budget.seconds) == (None, 2.0)


def test_merging_drops_the_settings_of_another_class():
    below = {"optimizer": {"class_path": "a.SGD", "init_args": {"lr": 1, "momentum": 2}}}
    same = merged(below, {"optimizer": {"class_path": "b.SGD", "init_args": {"lr": 3}}})
    assert same["optimizer"]["init_args"] == {"lr": 3, "momentum": 2}
    other = merged(below, {"optimizer": {"class_path": "b.Adam"}})
    assert other == {"optimizer": {"class_path": "b.Adam"}}


def test_print_config_is_a_config(here, capsys):
    options = ["--method", "SlowMo", "--method.inner", "LocalSGD", "--cluster.workers", "3"]
    assert main(["simulate", *options, "--print_config"]) == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert to_config(load_experiment(Path("printed.yaml"))) == to_config(experiment_of(*options))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_survives_the_way_through_yaml(name, tmp_path):
    config = to_config(experiment_of("--method", name))
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(config))
    assert to_config(load_experiment(tmp_path / "experiment.yaml")) == config


# Running


def test_a_run_directory_repeats_its_run_to_the_bit(here, capsys):
    options = ["--method", "ADPSGD", "--method.topology", "Complete", "--optimizer", "Adam"]
    assert main(["simulate", *options, "--seed", "3", *SMALL, "--out", "first"]) == 0
    out = capsys.readouterr().out
    assert "repeat     offbeat simulate --config first/experiment.yaml" in out
    assert main(["simulate", "--config", "first/experiment.yaml", "--out", "second"]) == 0
    for name in ("model.safetensors", "metrics.csv", "experiment.yaml"):
        assert (here / "first" / name).read_bytes() == (here / "second" / name).read_bytes()
    config = yaml.safe_load((here / "first/experiment.yaml").read_text())
    assert config["evaluator"] != "auto"


def test_the_summary_counts_servers_apart(here, capsys):
    assert main(["simulate", "--method", "AsyncSGD", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "AsyncSGD on LeastSquares, simulated: 4 workers + 1 server" in out
    assert "staleness  mean 2." in out
    assert [path.name.endswith("-AsyncSGD") for path in Path("runs").iterdir()] == [True]
    assert main(["simulate", "--method", "AsyncSGD", "--method.colocated", "true", *SMALL]) == 0
    assert "4 workers, 1 server colocated with them" in capsys.readouterr().out


def test_a_users_file_gives_method_and_problem_here_and_in_a_fresh_process(mine, tmp_path):
    options = ["--method", "my_file.py:Mine", "--method.scale", "0.5"]
    options += ["--problem", "my_file.py:scaled", "--problem.samples", "60"]
    options += ["--cluster.workers", "2", "--budget.samples", "400"]
    assert main(["simulate", *options, "--out", "first"]) == 0
    config = yaml.safe_load(Path("first/experiment.yaml").read_text())
    assert config["method"] == {"class_path": f"{mine}:Mine", "init_args": {"scale": 0.5}}
    assert config["problem"] == {"class_path": f"{mine}:scaled", "init_args": {"samples": 60}}
    (tmp_path / "elsewhere").mkdir()
    argv = [sys.executable, "-m", "offbeat", "simulate"]
    again = subprocess.run(
        [*argv, "--config", "../first/experiment.yaml", "--out", "second"],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    first = load_file("first/model.safetensors")
    second = load_file("elsewhere/second/model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_diverging_run_says_where_and_keeps_what_it_recorded(here, capsys):
    options = ["--method", "AllReduceSGD", "--optimizer.lr", "1e30"]
    assert main(["simulate", *options, *SMALL, "--out", "lost"]) == 1
    error = capsys.readouterr().err
    assert "diverged: worker " in error
    assert "what was recorded is in lost" in error
    assert len(error.splitlines()) == 1
    assert Path("lost/metrics.csv").read_text().count("\n") >= 2


def test_a_deadlock_is_told_in_one_line(mine, capsys):
    assert main(["simulate", "--method", "my_file.py:Deadlocked", *SMALL]) == 1
    error = capsys.readouterr().err
    assert "deadlock" in error
    assert "node 0" in error
    assert len(error.splitlines()) == 1


def test_ctrl_c_keeps_the_run_so_far(mine, capsys):
    options = ["--method", "my_file.py:Interrupted", *SMALL, "--out", "part"]
    assert main(["simulate", *options]) == 128 + signal.SIGINT
    assert "stopped    interrupted" in capsys.readouterr().out
    last = Path("part/metrics.csv").read_text().splitlines()[-1]
    assert 0 < int(last.split(",")[1]) < 640


def test_a_real_run_is_replayed_to_the_bit(here, capsys):
    options = ["--method", "AsyncSGD", "--workers", "2", "--problem", "LeastSquares"]
    assert main(["run", *options, "--budget.samples", "800", "--out", "real"]) == 0
    assert "run as processes: 2 workers + 1 server" in capsys.readouterr().out
    assert main(["replay", "real"]) == 0
    assert "all 20 parameters equal to the bit" in capsys.readouterr().out
    spoiled = load_file("real/model.safetensors")
    spoiled["weight"][3] += 1.0
    save_file(spoiled, "real/model.safetensors")
    assert main(["replay", "real"]) == 1
    assert "1 of 20 parameters differ" in capsys.readouterr().err


def test_plots_are_saved_on_request(here):
    assert main(["simulate", "--method", "SGD", *SMALL, "--out", "plotted", "--plots"]) == 0
    assert {p.name for p in Path("plotted").glob("*.png")} == {"loss.png", "timeline.png"}


def test_methods_are_listed_by_family(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in METHODS)
    line = next(line for line in out.splitlines() if line.startswith("ADPSGD"))
    assert line.split()[1:7] == ["worker,", "answer", "no", "2", "any", "yes"]


def test_each_method_s_row_is_what_it_declares():
    table = methods_table(dict.fromkeys(METHODS, 0.5), True)
    rows = {row[0]: row for row in zip(*(c.cells for c in table.columns), strict=True)}
    for name, method in METHODS.items():
        _, roles, synchronous, sent, stale, survives, paper = rows[name]
        bound = method().staleness_bound(4)
        assert ("server" in roles) == bool(method().server_count)
        assert synchronous == ("yes" if method.synchronous else "no")
        assert (sent, stale) == ("0.5", "any" if bound is None else str(bound))
        assert survives == ("yes" if method.survives_loss else "no")
        assert re.search(r"\d{4}, ", paper)
    # (n - 1)(2 s + 1) with s = 3, n - 1, and R - 1 with R = 16: of the papers.
    bounds = {"StaleSynchronousSGD": "21", "RoundRobinSGD": "3", "RingmasterSGD": "15"}
    assert {n: rows[n][4] for n in METHODS if rows[n][4] not in ("0", "any")} == bounds


def test_a_method_is_explained_with_its_settings(capsys):
    assert main(["methods", "SlowMo(period=4, inner=DPSGD)", "LocalSGD"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("SlowMo, local updates\n\nSlowMo: tau steps of an inner method")
    assert "u <- beta u + (x_0 - x_tau) / lr" in out
    assert "\nsettings     inner=DPSGD, period=4, alpha=1, beta=0.5, buffers=reset\n" in out
    assert "slowmo.py\n\nLocalSGD, local updates\n" in out
    assert out.endswith(f"{Path('methods', 'local_sgd.py')}\n")


@pytest.mark.parametrize(("wide", "columns"), [(False, 6), (True, 7)])
def test_methods_fit_the_terminal(wide, columns):
    table = methods_table(dict.fromkeys(METHODS, 0.25), wide)
    assert len(table.columns) == columns
    console = Console(width=WIDE if wide else 80, file=io.StringIO(), record=True)
    console.print(table)
    lines = console.export_text().splitlines()
    assert any(line.startswith("AdaptiveDelayCompensatedSGD ") for line in lines)
    # A family takes two lines, and a paper four at most.
    assert len(lines) < (4 if wide else 2) * (len(METHODS) + len(FAMILIES))
    assert any("Zheng et al. 2017" in line for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_says_what_it_does(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: offbeat {name}")
    assert " ".join(COMMANDS[name][1].split()) in " ".join(out.split())


@pytest.mark.parametrize("name", ["simulate", "run", "compare", "sweep"])
def test_help_asks_for_what_is_needed_and_offers_what_can_be_chosen(name, capsys):
    assert main([name, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--workers WORKERS short for --cluster.workers" in out
    assert "[--problem PROBLEM]" in out
    assert "[--optimizer OPTIMIZER]" in out
    assert out.count("(required") == (0 if name == "compare" else 1)
    assert "default: null" not in out
    assert "offbeat.problems.Digits" in out
    assert "torch.optim.Adam," in out
    for unusable in ("CIFARImages", "IDXImages", "Supervised", "optim.Optimizer", "LBFGS"):
        assert f".{unusable}" not in out
    assert "SparseAdam" not in out


def test_help_and_version(capsys):
    assert main([]) == 0
    assert "simulate" in capsys.readouterr().out
    assert main(["simulate", "--help"]) == 0
    assert "--cluster.workers" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert offbeat.__version__ in capsys.readouterr().out


def test_exit_code_and_line_of_a_real_process(here):
    argv = [sys.executable, "-m", "offbeat", "simulate", "--method", "SlowMoo"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "offbeat: there is no method SlowMoo; did you mean SlowMo?\n"
    assert done.stdout == ""


# Bad input

SIMULATE = ("simulate", "--method", "AsyncSGD", *SMALL)
GRAPH = ("--method", "ADPSGD", "--method.topology", "Graph", "--method.topology.edges")
WEIGHTS = ("--method", "ADPSGD", "--method.topology", "WeightedGraph", "--method.topology.weights")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["simulat"], "there is no command simulat; did you mean simulate?"),
        (["simulate"], "no method was given: add --method NAME; `offbeat methods` lists them"),
        (
            ["simulate", "--method", "SPG"],
            "there is no method SPG; did you mean StochasticGradientPush or SGD?",
        ),
        (
            ["simulate", "--method", "Xyzzy"],
            "there is no method Xyzzy; `offbeat methods` lists them",
        ),
        (
            ["simulate", "--method", "offbeat.methods.Xyzzy"],
            "there is no method offbeat.methods.Xyzzy; `offbeat methods` lists them",
        ),
        (
            ["simulate", "--method", "SlowMo", "--method.inner", "LocalSDG"],
            "method.inner: there is no method LocalSDG; did you mean LocalSGD",
        ),
        (
            ["simulate", "--method", "ADPSGD", "--method.topology", "Rng"],
            "method.topology: there is no topology Rng; did you mean Ring?",
        ),
        (
            ["simulate", "--method", "ChocoSGD", "--method.compressor", "topk"],
            "method.compressor: there is no compressor topk; did you mean TopK?",
        ),
        (
            ["simulate", "--method", "CompressedAllReduceSGD(compressor=Zip)"],
            "method.compressor: there is no compressor Zip; there are ",
        ),
        (
            ["simulate", "--method", "CompressedAllReduceSGD(compressor=TopK(fraction=0))"],
            "fraction is 0; it must be above 0 and at most 1",
        ),
        (
            ["simulate", "--method", "SoftsyncSGD(rule=Inverse)"],
            "method.rule: there is no staleness rule Inverse; did you mean InverseStaleness?",
        ),
        (
            ["simulate", "--method", "StaleSynchronousSGD(bound=1.5)"],
            "method.bound must be a whole number or null, not '1.5'",
        ),
        (
            ["simulate", "--method", "SGD", "--problem", "Digit"],
            "there is no problem Digit; did you mean Digits?",
        ),
        (
            ["simulate", "--method", "SGD", "--optimizer", "Adma"],
            "there is no optimizer Adma; did you mean Adam",
        ),
        (
            ["simulate", "--method", "SGD", "--optimizer", "torch.optim.Adma"],
            "there is no optimizer torch.optim.Adma; did you mean Adam",
        ),
        (
            [*SIMULATE, "--method.server", "2"],
            "method: AsyncSGD has no setting 'server'; did you mean servers?",
        ),
        (
            [*SIMULATE, "--optimizer.lrr", "3"],
            "optimizer: SGD has no setting 'lrr'; did you mean lr?",
        ),
        (
            [*SIMULATE, "--budget", "300"],
            "budget must be a mapping of its settings, not 300; for example --budget.samples 300",
        ),
        (
            ["simulate", "--method", "LocalSGD(4)"],
            "cannot read 'LocalSGD(4)'; write Name or Name(setting=value)",
        ),
        (
            ["simulate", "--method", "LocalSGD(local_step=4)"],
            "method: LocalSGD has no setting 'local_step'; did you mean local_steps",
        ),
        (
            ["simulate", "--method", "SGD", "--config", "null.yaml"],
            "problem is null; name a class, or leave it out for the default",
        ),
        (
            [*SIMULATE, "--cluster.workrs", "2"],
            "there is no option --cluster.workrs; did you mean --cluster.workers",
        ),
        (
            [*SIMULATE, "--xyzzy"],
            "there is no option --xyzzy; `offbeat simulate --help` lists all",
        ),
        ([*SIMULATE, "stray"], "'stray' is no option; `offbeat simulate --help` lists them"),
        ([*SIMULATE, "--seed"], "--seed: expected one argument"),
        ([*SIMULATE, "--seed", "x"], "seed must be a whole number, not 'x'"),
        ([*SIMULATE, "--optimizer.lr", "fast"], "optimizer.lr must be a number, not 'fast'"),
        ([*SIMULATE, "--optimizer.lr", "-1"], "Invalid learning rate: -1"),
        (
            [*SIMULATE, "--evaluate_on", "train"],
            "evaluate_on must be one of 'validation', 'test', not 'train'",
        ),
        ([*SIMULATE, "--cluster.workers", "0"], "cluster.workers is 0; it must be at least 1"),
        ([*SIMULATE, "--cluster.bandwidth", "-1"], "cluster.bandwidth is -1 bytes/s; it must be"),
        ([*SIMULATE, "--cluster.slow", "3"], "cluster.slow must be a mapping, not '3'"),
        (
            [*SIMULATE, "--cluster.faults", "[{kind: crush, rank: 1, at: 2}]"],
            "cluster.faults.kind must be one of 'crash', 'leave', 'join', 'slow', not 'crush'",
        ),
        ([*SIMULATE, "--cluster.faults", "[{kind: crash, rank: 1}]"], "cluster.faults lacks at"),
        (
            [*SIMULATE, "--problem.batch_size", "51"],
            "worker 0 holds 50 samples, fewer than batch_size 51: use smaller minibatches",
        ),
        (
            ["simulate", *GRAPH, "[[0,1],[2,3]]", *SMALL],
            "Graph does not connect 4 workers: no path leads from worker 0 to worker 2",
        ),
        (
            ["simulate", *WEIGHTS, "[[0.5,0.1],[0.5,0.5]]", *SMALL, "--cluster.workers", "2"],
            "column 1 of the mixing matrix sums to 0.6, not 1",
        ),
        ([*SIMULATE, "--optimizer", "LAM"], "there is no optimizer LAM; did you mean LAMB"),
        ([*SIMULATE, "--optimizer", "Delayed", "--optimizer.delay", "3"], "Delayed wraps an opti"),
        ([*SIMULATE, "--optimizer", "LBFGS"], "optimizer LBFGS cannot be used: it evaluates"),
        ([*SIMULATE, "--optimizer", "SparseAdam"], "optimizer SparseAdam cannot be used: it needs"),
        (
            ["simulate", "--method", "SGD", "--problem", "MNIST", "--problem.data_dir", "nowhere"],
            "mnist is incomplete in nowhere",
        ),
        (
            ["simulate", "--method", "SGD", "--problem", "my_file.py:WrongShape"],
            "WrongShape: the loss cannot compare the model's output of shape (2, 3) with targets "
            "of shape (2,)",
        ),
        (
            ["simulate", "--method", "my_file.py:Mind"],
            "my_file.py has no Mind; it has Mine",
        ),
        (["simulate", "--method", "nofile.py:Mine"], "there is no file nofile.py to take Mine"),
        (
            ["simulate", "--method", "broken.py:Mine"],
            "broken.py: NameError: name 'Nonsense' is not defined",
        ),
        (["simulate", "--method", "math.py:Mine"], "another module named math; rename the file"),
        (
            ["simulate", "--method", "SGD", "--problem", "my_file.py:untyped"],
            "problem: my_file.untyped is no Problem; name a subclass of it, or a function whose "
            "result is annotated `-> Problem`",
        ),
        ([*SIMULATE, "--config", "none.yaml"], "there is no config file none.yaml"),
        ([*SIMULATE, "--config", "broken.yaml"], "config file broken.yaml, line 2 is no YAML"),
        ([*SIMULATE, "--config", "text.yaml"], "config file text.yaml holds no options"),
        ([*SIMULATE, "--config", "typo.yaml"], "there is no option --sed; did you mean --seed"),
        (
            [*SIMULATE, "--config", "number.yaml"],
            "cluster must be a mapping of its settings, not 3",
        ),
        ([*SIMULATE, "--config"], "--config needs the path of a YAML file"),
        ([*SIMULATE, "--out", "my_file.py/x"], "cannot write to --out my_file.py/x: Not a dir"),
        ([*SIMULATE, "--out", "."], "--out . is not empty; choose another directory"),
        (["run", "--method", "SGD", "--workers", "0"], "cluster.workers is 0; it must be"),
        ([*SIMULATE, "--workers", "9" * 20], "it must be at most 1,000,000"),
        ([*SIMULATE, "--config", "loop.yaml"], "loop.yaml holds something that holds itself"),
        (["replay", "nowhere"], "nowhere is no run directory: it has no run.json"),
        (["methods", "--all"], "there is no option --all; `offbeat methods --help` lists all"),
        (["methods", "ADPSDG"], "there is no method ADPSDG; did you mean ADPSGD"),
        (["methods", "BackupSyncSGD(backups=4)"], "backups is 4; it must be from 0 to below the"),
        (["problems", "--all"], "`offbeat problems` takes no options, not --all"),
        (["compare", "AsyncSDG"], "there is no method AsyncSDG; did you mean AsyncSGD"),
        (["compare", "AsyncSGD(server=2)"], "method: AsyncSGD has no setting 'server'; did you"),
        (["compare", "AsyncSGD(2)"], "cannot read 'AsyncSGD(2)'; write Name or Name(setting="),
        (["compare", "SGD", "--rates", "a,b"], "--rates a,b: give numbers with commas between"),
        (["compare", "SGD", "--rates", "0.1,-1"], "rates are -1.0, 0.1; give positive numbers"),
        (["compare", "SGD", "--target", "93"], "target is 93; an accuracy is from 0 to 1"),
        (["compare", "SGD", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["compare", "SGD", "--out", "my_file.py/x"], "cannot write to --out my_file.py/x"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value)[-40:],
)
def test_bad_input_gets_one_line_and_leaves_nothing(argv, told, mine, capsys):
    Path("null.yaml").write_text("problem: null")
    Path("broken.yaml").write_text("seed: 1\ncluster: [")
    Path("text.yaml").write_text("just text")
    Path("typo.yaml").write_text("sed: 1")
    Path("number.yaml").write_text("cluster: 3")
    Path("loop.yaml").write_text("method: &m {class_path: SGD, init_args: *m}")
    Path("broken.py").write_text("Nonsense")
    Path("math.py").write_text("")
    assert told in refusal(capsys, *argv)


def test_a_simulated_run_is_not_replayed(here, capsys):
    main(["simulate", "--method", "SGD", *SMALL, "--out", "simulated"])
    assert main(["replay", "simulated"]) == 2
    assert "only real runs are replayed" in capsys.readouterr().err


# Python


def test_python_and_the_command_line_give_the_same_bits(here):
    run = offbeat.simulate(
        offbeat.methods.LocalSGD(),
        offbeat.problems.LeastSquares(),
        cluster=offbeat.Cluster(workers=4),
        budget=offbeat.Budget(samples=640),
        seed=5,
        directory="python",
    )
    assert main(["simulate", "--method", "LocalSGD", *SMALL, "--seed", "5", "--out", "cli"]) == 0
    stored = load_file("cli/model.safetensors")
    assert torch.equal(stored["weight"], run.parameters["weight"])
    assert Path("python/experiment.yaml").read_text() == Path("cli/experiment.yaml").read_text()


def test_the_package_gives_what_it_promises_and_nothing_else():
    for name in offbeat.__all__:
        assert getattr(offbeat, name) is not None
        assert name in dir(offbeat)
    assert inspect.isfunction(offbeat.distribute)
    assert offbeat.topologies.Ring().out_neighbors(0, 3, 0) == (2, 1)
    with pytest.raises(AttributeError, match="module 'offbeat' has no attribute 'simulat'"):
        _ = offbeat.simulat


def test_the_list_of_commands_says_what_each_of_them_says():
    for name, (module, purpose) in COMMANDS.items():
        command = getattr(importlib.import_module(f"offbeat.cli.{module}"), name)
        assert command.__doc__ == purpose


def test_help_and_interrupts_do_without_torch():
    code = (
        "import sys; from offbeat.cli import main; main(['--help']); main(['--version']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "meanwhile",
    [
        "os.kill(os.getpid(), signal.SIGINT)",
        # Whoever catches the exception may go on with half of a package, and fail at anything.
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    len(None)",
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    os._exit(0)",
    ],
    ids=["raised", "becomes another exception", "caught"],
)
def test_an_interrupt_while_torch_is_imported_is_one_line(meanwhile, tmp_path):
    # In place of torch: a module that is still being imported when the interrupt comes.
    (tmp_path / "torch.py").write_text(f"import os, signal\n{meanwhile}\n")
    argv = [sys.executable, "-m", "offbeat", "methods"]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert done.returncode == 130
    assert done.stderr == "offbeat: interrupted\n"
