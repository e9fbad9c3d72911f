"""`offbeat hogwild`: the table, the files, and what a tired person types."""

import json

import numpy as np
import pytest

from offbeat.cli import main
from offbeat.hogwild import load

SMALL = "SparseSVM(rows=300,features=2000,nonzeros=10)"


def hogwild(*options: object) -> int:
    return main(["hogwild", *map(str, options)])


def test_schemes_are_compared_with_serial(tmp_path, capsys):
    out = tmp_path / "out"
    assert hogwild(SMALL, "--scheme", "all", "--epochs", 2, "--out", out) == 0
    said = capsys.readouterr().out
    for word in ("serial", "round-robin", "averaging", "speed-up", "Omega", "Delta", "rho"):
        assert word in said
    assert f"saved in {out}: report.html, objective.png" in said
    outcomes = load(out)
    assert [one.settings.scheme for one in outcomes] == [
        "serial", "hogwild", "hogwild++", "locked", "round-robin", "vector-lock", "averaging",
    ]  # fmt: skip
    assert all(len(one.epochs) == 3 and not one.simulated for one in outcomes)
    assert (out / "report.html").stat().st_size > 1e6


def test_simulated_workers_and_their_pictures(tmp_path, capsys):
    out = tmp_path / "out"
    problems = [SMALL, "SparseSVM(rows=300,features=300,nonzeros=10)"]
    assert hogwild(*problems, "--workers", 2, 10, "--epochs", 2, "--out", out) == 0
    said = capsys.readouterr().out
    assert "collided" in said
    assert "virtual" in said
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {
        "objective-1.png",
        "objective-2.png",
        "speed-up.png",
        "collisions-by-workers.png",
        "collisions-by-sparsity.png",
        "collisions.png",
    }
    outcomes = load(out)
    # Serial once for both numbers of workers.
    assert [one.settings.workers for one in outcomes] == [1, 2, 10] * 2
    for one in outcomes:
        assert one.simulated
        vertices = 2000 if "features=2000" in one.problem else 300
        assert len(one.collisions.updates) == vertices
    page = (out / "report.html").read_text()
    for text in ("Where they collide", "Netflix", "2569.1", "collided"):
        assert text in page


def test_a_delay_and_what_is_watched(tmp_path):
    out = tmp_path / "out"
    asked = ["--delay", 1e-6, 1e-5, "--scheme", "serial", "hogwild", "round-robin", "--watch"]
    assert hogwild(SMALL, *asked, "--epochs", 1, "--out", out) == 0
    assert (out / "delay.png").is_file()
    outcomes = load(out)
    assert len(outcomes) == 6
    assert {one.settings.delay for one in outcomes} == {1e-6, 1e-5}
    assert all(one.collisions is not None for one in outcomes)


def test_results_are_read_back_as_they_were(tmp_path):
    out = tmp_path / "out"
    assert hogwild(SMALL, "--workers", 4, "--epochs", 1, "--out", out, "--times.load", 5e-9) == 0
    written = json.loads((out / "hogwild.json").read_text())
    one = load(out)[1]
    assert one.settings.scheme == "hogwild"
    assert one.epochs[-1].objective == written[1]["epochs"][-1]["objective"]
    assert one.collisions.updates.sum() > 0
    assert one.collisions.mean_lag == written[1]["collisions"]["mean_lag"]
    with np.load(out / "collisions.npz") as arrays:
        assert np.array_equal(arrays["collided_1"], one.collisions.collided)


def test_the_report_of_saved_results(tmp_path, capsys):
    out, page = tmp_path / "out", tmp_path / "page.html"
    assert hogwild(SMALL, "--workers", 2, "--epochs", 1, "--out", out) == 0
    assert main(["report", str(out), "--out", str(page)]) == 0
    assert "share one vector" in page.read_text()
    (tmp_path / "other").mkdir()
    assert main(["report", str(out), str(tmp_path / "other"), "--out", str(page)]) == 2
    assert "they need reports of their own" in capsys.readouterr().err
    (out / "collisions.npz").write_bytes(b"")
    assert main(["report", str(out), "--out", str(page)]) == 2
    assert "is no result of `offbeat hogwild`" in capsys.readouterr().err


def test_a_problem_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from offbeat.hogwild import SparseProblem, SparseSVM\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(SparseProblem):\n"
        "    step = 0.1\n"
        "    rows: int = 50\n"
        "    def build(self, precision):\n"
        "        return SparseSVM(rows=self.rows, features=90, nonzeros=3).build(precision)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert hogwild("mine.py:Mine(rows=60)", "--epochs", 1, "--out", "out") == 0
    assert load(tmp_path / "out")[0].problem == "Mine(rows=60)"


def test_what_diverges_is_said_and_the_rest_is_kept(tmp_path, capsys):
    out = tmp_path / "out"
    problems = [
        "SparseLeastSquares(rows=400,features=100,nonzeros=20)",
        "SparseSVM(rows=300,features=2000,nonzeros=10,l2=0)",
    ]
    assert hogwild(*problems, "--step", 30, "--out", out) == 1
    said = capsys.readouterr()
    assert "diverged in epoch" in said.err
    assert {one.problem.partition("(")[0] for one in load(out)} == {"SparseSVM"}
    assert hogwild(problems[0], "--step", 30, "--out", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no problem was given; begin with one of SparseSVM, SparseLogistic"),
        (["--scheme", "all", "SparseSVM"], "--scheme take all that follows them"),
        (["SparseSVN"], "there is no problem SparseSVN; did you mean SparseSVM or"),
        (["Digits"], "there is no problem Digits; there are SparseSVM, SparseLogistic"),
        (["SparseSVM(row=5)"], "SparseSVM has no setting 'row'; did you mean rows or rho?"),
        (["SparseSVM(rows=many)"], "rows must be a whole number, not 'many'"),
        (["SparseSVM(rows=0)"], "rows is 0; it must be at least 1"),
        (["SparseSVM(rows=5"], "SparseSVM(rows=5"),
        (['SparseSVM(train="/none.svm")'], "there is no file /none.svm"),
        (["SparseSVM", "--scheme", "hogwidl"], "there is no scheme hogwidl; did you mean hogwild"),
        (["SparseSVM", "--threads", "0"], "workers is 0; it must be at least 1"),
        (["SparseSVM", "--threads", "two"], "threads"),
        (["SparseSVM", "--workers", "-3"], "workers is -3; it must be at least 1"),
        (["SparseSVM", "--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["SparseSVM", "--step", "0"], "step is 0; it must be positive and finite"),
        (["SparseSVM", "--decay", "2"], "decay is 2; it must be above 0 and at most 1"),
        (["SparseSVM", "--delay", "-1"], "delay is -1 seconds"),
        (["SparseSVM", "--adds", "quick"], "adds is 'quick'; it must be plain or atomic"),
        (["GraphCut", "--adds", "atomic"], "a projection onto the simplex is no addition"),
        (["SparseSVM", "--times.read", "-1"], "read is -1; it must not be negative"),
        (["SparseSVM", "--thread", "2"], "there is no option --thread"),
        (["SparseSVM", "--scheme", "averaging", "--watch"], "no collisions to watch"),
        (["SparseSVM", "--scheme", "hogwild++", "--watch"], "no collisions to watch"),
        (["SparseSVM", "--scheme", "hogwild++", "--clusters", "3"], "3 clusters of 2 workers"),
        (["SparseSVM", "--scheme", "hogwild++", "--hold", "0"], "hold is 0"),
        (["SparseSVM", "--scheme", "hogwild+"], "did you mean hogwild++ or hogwild?"),
    ],
)
def test_bad_input_is_one_line(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert hogwild(*options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*"))


def test_what_does_not_fit_into_memory_is_one_line(tmp_path, capsys):
    out = tmp_path / "out"
    assert hogwild("SparseSVM(rows=1000000000000)", "--out", out) == 2
    said = capsys.readouterr().err
    assert "SparseSVM(rows=1000000000000) does not fit into memory" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_serial_is_plain_where_others_add_atomically(tmp_path):
    assert hogwild(SMALL, "--adds", "atomic", "--epochs", 1, "--out", tmp_path / "out") == 0
    adds = {one.settings.scheme: one.settings.adds for one in load(tmp_path / "out")}
    assert adds == {"serial": "plain", "hogwild": "atomic"}


def test_a_full_directory_is_not_written_to(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert hogwild(SMALL, "--out", tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err


def test_help_says_what_there_is(capsys):
    assert hogwild("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for word in ("SparseSVM", "MatrixCompletion", "round-robin", "--times.transfer", "--watch"):
        assert word in said


@pytest.mark.parametrize("workers", ["--threads", "--workers"])
def test_a_block_larger_than_all_edges(tmp_path, workers):
    out = tmp_path / "out"
    assert hogwild(SMALL, "--block", 10**20, workers, 2, "--epochs", 1, "--out", out) == 0


def test_accesses_that_take_no_time(tmp_path, capsys):
    free = [f"--times.{name}=0" for name in ("read", "compute", "load", "store", "transfer")]
    out = tmp_path / "out"
    assert hogwild(SMALL, "--workers", 2, "--epochs", 1, "--out", out, *free) == 0
    assert "speed-up" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--delay", "1e10"], "delay is 1e+10 seconds; it must be from 0 to 3600"),
        (["--threads", "2", "5000"], "5,000 threads; at most 1,024, and this machine has"),
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--workers", "2", "--times.jitter", "1000"], "jitter is 1000; it must be at most 10"),
    ],
)
def test_numbers_out_of_range(tmp_path, capsys, options, said):
    out = tmp_path / "out"
    assert hogwild(SMALL, "--epochs", 1, "--out", out, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("offbeat: ")
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()
