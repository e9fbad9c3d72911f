"""Sweeps: cells, resuming after any end, tables, and what bad input is told."""

import csv
import functools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from offbeat import Budget, Cluster, Experiment
from offbeat.cli import main
from offbeat.cli.sweep import values_of
from offbeat.methods import AsyncSGD, LocalSGD
from offbeat.problems import Digits, LeastSquares
from offbeat.runs import load_run
from offbeat.sweep import Row, grid, pivot, stable_rates, sweep
from offbeat.sweep.stable import chance_of

BASE = Experiment(
    method=AsyncSGD(),
    problem=LeastSquares(),
    cluster=Cluster(workers=2),
    optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.5),
    budget=Budget(samples=640),
)
SMALL = ["--problem", "LeastSquares", "--method", "AsyncSGD", "--budget.samples", "640"]
OVER = ["--over", "cluster.workers=1,3", "--over", "optimizer.lr=0.01,1e30", "--over", "seed=0,1"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tables(directory):
    return [(Path(directory) / name).read_bytes() for name in ("sweep.csv", "sweep.md")]


def rows_of(directory):
    return list(csv.DictReader((Path(directory) / "sweep.csv").read_text().splitlines()))


def refusal(capsys, *options):
    """The one line that a refused sweep is told; nothing of it is left."""
    before = set(Path.cwd().iterdir())
    assert main(["sweep", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert set(Path.cwd().iterdir()) == before
    return lines[0].removeprefix("offbeat: ")


# Cells


def test_every_combination_is_a_run_of_its_own():
    over = {"cluster.workers": [1, 3], "optimizer.lr": [0.01, 0.02], "seed": [0, 1]}
    rows = sweep(BASE, over, "out")
    assert [tuple(row.values.values()) for row in rows] == [
        (workers, rate, seed) for workers in "13" for rate in ("0.01", "0.02") for seed in "01"
    ]
    for row in rows:
        run = load_run(Path("out/cells") / row.cell)
        experiment = run.experiment
        assert experiment.cluster.workers == int(row.values["cluster.workers"])
        assert experiment.optimizer.keywords["lr"] == float(row.values["optimizer.lr"])
        assert experiment.optimizer.keywords["momentum"] == 0.5
        assert experiment.seed == int(row.values["seed"])
        assert row.loss == run.metrics[-1].loss
        assert row.staleness_max == run.staleness.max()
        assert row.seconds == run.seconds
        assert row.error is None
    assert len({row.loss for row in rows}) == 8


def test_fields_of_every_kind_from_the_command_line(capsys):
    cells = {
        "method": "AsyncSGD,LocalSGD(local_steps=4),SlowMo(inner=LocalSGD(local_steps=2),beta=0)",
        "problem": "LeastSquares,Digits(hidden=8)",
        "cluster.compute": "Constant,Lognormal(sigma=0.5)",
        "cluster.slow": "{},{0: 4.0}",
        "cluster.faults": "[],[{kind: slow, rank: 0, at: 0.1, factor: 2}]",
        "optimizer": "SGD(lr=0.01),Adam(lr=0.01,betas=[0.8,0.9])",
        "optimizer.lr": "[0.01, 0.02]",
        "schedule": "Constant,Cosine(total=640)",
        "budget.samples": "320,640",
        "evaluate_every": "null,64",
        "evaluator": "serial,vmap",
    }
    read = {
        "method": lambda e: type(e.method).__name__,
        "problem": lambda e: type(e.problem).__name__,
        "cluster.compute": lambda e: type(e.cluster.compute).__name__,
        "cluster.slow": lambda e: e.cluster.slow,
        "cluster.faults": lambda e: len(e.cluster.faults),
        "optimizer": lambda e: (
            e.optimizer.func.__name__,
            e.optimizer.keywords.get("betas") and tuple(e.optimizer.keywords["betas"]),
        ),
        "optimizer.lr": lambda e: e.optimizer.keywords["lr"],
        "schedule": lambda e: type(e.schedule).__name__,
        "budget.samples": lambda e: e.budget.samples,
        "evaluate_every": lambda e: e.evaluate_every,
        "evaluator": lambda e: e.evaluator,
    }
    expected = {
        "method": ["AsyncSGD", "LocalSGD", "SlowMo"],
        "problem": ["LeastSquares", "Digits"],
        "cluster.compute": ["Constant", "Lognormal"],
        "cluster.slow": [{}, {0: 4.0}],
        "cluster.faults": [0, 1],
        "optimizer": [("SGD", None), ("Adam", (0.8, 0.9))],
        "optimizer.lr": [0.01, 0.02],
        "schedule": ["Constant", "Cosine"],
        "budget.samples": [320, 640],
        "evaluate_every": [None, 64],
        "evaluator": ["serial", "vmap"],
    }
    for name, values in cells.items():
        options = [*SMALL, "--cluster.workers", "2", "--over", f"{name}={values}", "--jobs", "1"]
        assert main(["sweep", *options, "--out", name]) == 0, capsys.readouterr().err
        found = [load_run(Path(name, "cells", row["cell"])).experiment for row in rows_of(name)]
        assert [read[name](experiment) for experiment in found] == expected[name]


def test_commas_inside_brackets_and_quotes_do_not_split():
    assert values_of("", "1, 2") == ["1", "2"]
    assert values_of("", "[1, 2]") == ["1", "2"]
    assert values_of("", "[[1, 2]]") == ["[1, 2]"]
    assert values_of("", "A(b=1,c=[2,3]),D") == ["A(b=1,c=[2,3])", "D"]
    assert values_of("", "A(b='x,)'),D") == ["A(b='x,)')", "D"]
    assert values_of("", "[null, 0.5]") == ["null", "0.5"]
    assert values_of("", "") == values_of("", "[]") == []


def test_the_python_interface_takes_objects():
    over = {"method": [AsyncSGD(), LocalSGD(local_steps=2)], "method.colocated": [False]}
    with pytest.raises(ValueError, match="LocalSGD has no setting 'colocated'"):
        grid(BASE, over)
    cells = grid(BASE, {"method": [AsyncSGD(), LocalSGD(local_steps=2)]})
    assert [cell.name for cell in cells] == ["method=AsyncSGD", "method=LocalSGD-local_steps=2"]
    assert [cell.experiment.method for cell in cells] == [AsyncSGD(), LocalSGD(local_steps=2)]
    # A class and its own setting, in either order.
    for names in (("optimizer", "optimizer.lr"), ("optimizer.lr", "optimizer")):
        values = {"optimizer": [functools.partial(torch.optim.Adam)], "optimizer.lr": [0.5]}
        (cell,) = grid(BASE, {name: values[name] for name in names})
        assert cell.experiment.optimizer.func is torch.optim.Adam
        assert cell.experiment.optimizer.keywords == {"lr": 0.5}


# Ends and beginnings


def test_processes_give_the_same_table_as_one():
    assert main(["sweep", *SMALL, *OVER, "--out", "one", "--jobs", "1"]) == 0
    assert main(["sweep", *SMALL, *OVER, "--out", "two", "--jobs", "2"]) == 0
    assert tables("one") == tables("two")
    rows = rows_of("two")
    assert len(rows) == 8
    diverged = [row for row in rows if row["optimizer.lr"] == "1e30"]
    assert all(row["error"].startswith("diverged") for row in diverged)
    assert not any(row["error"] for row in rows if row not in diverged)
    # Done is done, failed or not.
    before = {p: p.stat().st_mtime_ns for p in Path("two/cells").rglob("cell.json")}
    assert main(["sweep", *SMALL, *OVER, "--out", "two", "--jobs", "2"]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in Path("two/cells").rglob("cell.json")}


def children_of(pid):
    """Processes below that one, by /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(status.parent.name)] = int(fields[1])
    found, grown = {pid}, True
    while grown:
        below = {child for child, parent in parents.items() if parent in found}
        grown = not below <= found
        found |= below
    return found - {pid}


def are_gone(pids):
    """Whether all those processes end within half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


SIX = ["--budget.samples", "3200", "--method", "AsyncSGD", "--cluster.workers", "4"]
SIX += ["--over", "seed=0,1,2", "--over", "optimizer.lr=0.01,0.02", "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The tables of six cells that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["sweep", *SIX, str(out), "--jobs", "1"]) == 0
    return tables(out)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_was_ended_in_the_middle_goes_on_to_the_same_table(how, whole):
    command = [sys.executable, "-m", "offbeat", "sweep", *SIX, "out", "--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    done = functools.partial(lambda: list(Path("out/cells").glob("[!.]*/cell.json")))
    wait_for(lambda: len(done()) >= 2, process)
    below = children_of(process.pid)
    assert len(below) >= 2
    if how == signal.SIGKILL:
        process.kill()
    else:
        # As a terminal does it: to all of them.
        os.killpg(process.pid, how)
    _, told = process.communicate(timeout=60)
    assert are_gone(below)
    kept = {path: path.stat().st_mtime_ns for path in done()}
    assert 2 <= len(kept) < 6
    if how == signal.SIGINT:
        assert process.returncode == 130
        line = f"offbeat: interrupted: {len(kept)} of 6 cells are done; the same command does"
        assert told.decode().startswith(line)
        assert len(told.decode().splitlines()) == 1
        assert not list(Path("out/cells").glob(".*"))
    assert not Path("out/sweep.csv").exists()
    # What was being written when it was killed is no cell.
    (Path("out/cells") / ".part-seed=2,optimizer.lr=0.02").mkdir(exist_ok=True)
    assert main([*command[3:-1], "1"]) == 0
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in done()}.items()
    assert not list(Path("out/cells").glob(".*"))
    assert tables("out") == whole


def test_another_sweep_in_the_same_directory_is_refused(capsys):
    over = ["--over", "seed=0,1", "--jobs", "1", "--out", "out"]
    assert main(["sweep", *SMALL, *over]) == 0
    before = tables("out")
    line = refusal(capsys, *SMALL, *over, "--cluster.workers", "3")
    assert line == (
        "out holds another sweep: cluster.workers is 16 there and 3 here; choose another directory"
    )
    line = refusal(capsys, *SMALL, "--over", "seed=0,2", "--jobs", "1", "--out", "out")
    assert "over.seed is ['0', '1'] there and ['0', '2'] here" in line
    assert "light is False there and True here" in refusal(capsys, *SMALL, *over, "--light")
    assert tables("out") == before
    Path("full").mkdir()
    Path("full/file").touch()
    assert "not empty" in refusal(capsys, *SMALL, "--over", "seed=0,1", "--out", "full")


def test_another_order_is_another_sweep(capsys):
    one, other = ["--over", "seed=0,1"], ["--over", "optimizer.lr=0.1,0.2"]
    assert main(["sweep", *SMALL, *one, *other, "--out", "out", "--jobs", "1"]) == 0
    before = tables("out")
    told = refusal(capsys, *SMALL, *other, *one, "--out", "out")
    assert "holds another sweep: over seed, optimizer.lr there" in told
    assert tables("out") == before


def test_a_class_is_swept_over_with_a_setting_that_all_of_them_have():
    options = ["--over", "method=LocalSGD,PostLocalSGD", "--method.local_steps", "2"]
    assert main(["sweep", *SMALL, *options, "--out", "out", "--jobs", "1"]) == 0
    cells = [load_run(Path("out/cells", row["cell"])).experiment for row in rows_of("out")]
    assert [cell.method.local_steps for cell in cells] == [2, 2]


def test_a_cell_that_lost_its_result_is_made_again():
    options = ["--over", "seed=0,1", "--out", "out", "--jobs", "1"]
    assert main(["sweep", *SMALL, *options]) == 0
    before = tables("out")
    (Path("out/cells") / rows_of("out")[0]["cell"] / "cell.json").unlink()
    assert main(["sweep", *SMALL, *options]) == 0
    assert tables("out") == before


def test_a_damaged_cell_is_named(capsys):
    over = ["--over", "seed=0,1", "--jobs", "1", "--out", "out"]
    assert main(["sweep", *SMALL, *over]) == 0
    Path("out/cells/seed=1/cell.json").write_text("{")
    assert "out/cells/seed=1/cell.json" in refusal(capsys, *SMALL, *over)


def test_light_cells_say_why_they_cannot_be_read():
    assert main(["sweep", *SMALL, "--over", "seed=0", "--out", "out", "--light"]) == 0
    with pytest.raises(ValueError, match="of a sweep with --light, which keeps no traces"):
        load_run(next(Path("out/cells").iterdir()))


def test_light_cells_have_no_trace():
    assert main(["sweep", *SMALL, "--over", "seed=0", "--out", "a", "--light", "--jobs", "1"]) == 0
    assert main(["sweep", *SMALL, "--over", "seed=0", "--out", "b", "--jobs", "1"]) == 0
    light, full = ({p.name for p in Path(d, "cells/seed=0").iterdir()} for d in "ab")
    assert full - light == {"trace.npz"}
    assert tables("a") == tables("b")


# Tables


def row(loss=1.0, accuracy=math.nan, error=None, **values):
    values = {name.replace("_", "."): str(value) for name, value in values.items()}
    return Row(cell="-", values=values, loss=loss, accuracy=accuracy, error=error)


def test_seeds_are_averaged_and_other_settings_are_tables_of_their_own():
    rows = [
        row(accuracy=0.1 * workers + 0.01 * seed + rate, workers=workers, lr=rate, seed=seed, m=m)
        for m in "ab"
        for workers in (1, 2)
        for rate in (0.1, 0.2)
        for seed in (0, 1, 2)
    ]
    first, second = pivot(rows)
    assert (first.rows, first.columns) == ("workers", "lr")
    assert [first.fixed, second.fixed] == [{"m": "a"}, {"m": "b"}]
    group = first.groups["2", "0.1"]
    assert group.mean == pytest.approx(0.31)
    assert group.spread == pytest.approx(0.01)
    (turned, *_) = pivot(rows, "m", "workers")
    assert (turned.rows, turned.columns, turned.fixed) == ("m", "workers", {"lr": "0.1"})
    assert len(turned.groups["a", "1"].rows) == 3
    (seeds, *_) = pivot(rows, "seed", "lr")
    assert len(seeds.groups["0", "0.1"].rows) == 1
    assert math.isnan(seeds.groups["0", "0.1"].spread)


def test_the_printed_pivot_shows_means_spreads_and_what_diverged(capsys):
    options = ["--method", "AsyncSGD", "--budget.samples", "1600", "--cluster.workers", "2"]
    over = ["--over", "optimizer.lr=0.1,1e30", "--over", "cluster.workers=1,2"]
    seeds = ["--over", "seed=0,1", "--jobs", "1", "--out", "out", "--stable", "optimizer.lr"]
    assert main(["sweep", *options, *over, *seeds]) == 0
    out = capsys.readouterr().out
    text = Path("out/sweep.md").read_text()
    rows = [r for r in rows_of("out") if r["optimizer.lr"] == "0.1" and r["cluster.workers"] == "2"]
    low, high = sorted(100 * float(r["accuracy"]) for r in rows)
    spread = (high - low) / math.sqrt(2)
    cell = f"{(low + high) / 2:.1f} ±{spread:.1f}"
    assert cell in out
    assert f"| {cell} |" in text
    assert "| 1e30 | diverged | diverged |" in text
    assert "| optimizer.lr \\ cluster.workers | 1 | 2 |" in text
    assert "4 of 8 cells failed" in out
    assert "| 2 | 0.1 |" in text


def test_the_largest_stable_rate_neither_diverges_nor_stays_at_chance():
    def cell(n, lr, accuracies, error=None):
        return [
            row(accuracy=a, cluster_workers=n, optimizer_lr=lr, seed=s, error=error)
            for s, a in enumerate(accuracies)
        ]

    rows = [
        *cell(1, "0.01", [0.9, 0.9]),
        *cell(1, "0.1", [0.8, 0.9]),
        *cell(1, "1", [0.9, 0.9], "diverged: loss nan"),
        *cell(2, "0.01", [0.5, 0.6]),
        *cell(2, "0.1", [0.9, 0.15]),
        *cell(2, "1", [0.1, 0.1]),
        *cell(9, "0.01", [0.1, 0.1]),
        *cell(9, "0.1", [0.1, math.nan]),
        *cell(9, "1", [math.nan, math.nan]),
    ]
    found = stable_rates(rows, "optimizer.lr", chance=0.1, margin=0.1)
    assert found == [
        ({"cluster.workers": "1"}, "0.1"),
        ({"cluster.workers": "2"}, "0.01"),
        ({"cluster.workers": "9"}, None),
    ]
    assert stable_rates(rows, "optimizer.lr", chance=0.1, margin=0.04)[1][1] == "0.1"


def test_chance_is_the_share_of_the_most_frequent_class():
    problem = Digits()
    targets = problem.data().test.targets
    most = max((targets == k).sum().item() for k in range(10))
    experiment = Experiment(
        method=AsyncSGD(),
        problem=problem,
        cluster=Cluster(workers=2),
        optimizer=torch.optim.SGD,
        budget=Budget(samples=640),
    )
    assert chance_of(experiment) == most / len(targets)


# Bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "nothing to sweep over"),
        (["--over", "seed"], "write FIELD=VALUE"),
        (["--over", "seed="], "--over seed names no value"),
        (["--over", "seed=[]"], "--over seed names no value"),
        (["--over", "seed=1,,2"], "has an empty value"),
        (["--over", "seed=1,2,1"], "--over seed names 1 twice"),
        (["--over", "optimizer.lr=0.1,0.10"], "are the same experiment"),
        (["--over", "seed=1", "--over", "seed=2"], "--over seed is given twice"),
        (["--over", "sed=1,2"], "no field sed; did you mean seed?"),
        (["--over", "cluster.wrkers=1"], "cluster.workers"),
        (["--over", "out=a,b"], "no field out"),
        (["--over", "cluster.workers=1,many"], "cluster.workers must be"),
        (["--over", "cluster.workers=0,1"], "it must be at least 1"),
        (["--over", "method=AsyncSGD,AsyncSDG"], "did you mean AsyncSGD"),
        (["--over", "method=LocalSGD(local_steps=2"], "a ) is missing"),
        (["--over", "method=LocalSGD(3)"], "write Name or Name(setting=value)"),
        (["--over", "method=AsyncSGD,SGD", "--over", "method.servers=1,2"], "servers"),
        (["--over", "seed=0,1", "--rows", "optimizer.lr"], "--rows optimizer.lr is not swept"),
        (["--over", "seed=0,1", "--columns", "seed"], "--columns seed leaves no swept field"),
        (["--problem=Digits", "--over", "seed=0,1", "--stable", "optimizer.lr"], "not swept over"),
        (["--over", "optimizer.lr=0.1", "--stable", "optimizer.lr"], "has no accuracy"),
        (["--over", "seed=0,1", "--jobs", "0"], "--jobs is 0"),
        (["--over", "seed=0,1", "--jobs", "x"], "--jobs"),
        (["--over", "seed=0,1", "--margin", "2"], "--margin is 2"),
        (["--over", "seed=0,1", "--nonsense", "2"], "no option --nonsense"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_runs(capsys, options, told):
    assert told in refusal(capsys, *SMALL, *options, "--out", "out")


def test_a_sweep_needs_a_directory(capsys):
    assert "give --out DIR" in refusal(capsys, *SMALL, "--over", "seed=0")
    assert refusal(capsys, *SMALL).endswith("give --over FIELD=VALUES and --out DIR")


def test_a_cell_that_raises_is_a_row_with_its_reason(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("sweep_raising.py").write_text(
        "from dataclasses import dataclass\n"
        "from offbeat.methods import SGD\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Raising(SGD):\n"
        "    async def step(self, node):\n"
        "        raise KeyError('broken')\n"
    )
    over = ["--over", "method=sweep_raising.py:Raising,SGD", "--out", "out", "--jobs", "1"]
    assert main(["sweep", *SMALL, *over]) == 0
    sys.modules.pop("sweep_raising")
    raising, serial = rows_of("out")
    assert "broken" in raising["error"]
    assert serial["error"] == ""
    assert "failed" in capsys.readouterr().out
