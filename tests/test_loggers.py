"""Loggers: what they wrote is read back."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offbeat import Budget, Cluster, simulate
from offbeat.cli import main
from offbeat.loggers import TensorBoard, WeightsAndBiases, settings
from offbeat.methods import SGD, LocalSGD
from offbeat.problems import LeastSquares

SMALL = {"cluster": Cluster(workers=2), "budget": Budget(samples=640)}


def events_of(directory):
    stored = EventAccumulator(str(directory))
    stored.Reload()
    return stored


def test_tensorboard_has_every_evaluation_against_samples_and_virtual_seconds(tmp_path):
    with TensorBoard(tmp_path) as progress:
        run = simulate(LocalSGD(), progress=progress, **SMALL)
    stored = events_of(tmp_path)
    for name in ("accuracy", "loss", "consensus", "bytes"):
        found = [(e.step, e.wall_time, e.value) for e in stored.Scalars(name)]
        assert found == [
            (row.samples, row.seconds, pytest.approx(getattr(row, name), rel=1e-6))
            for row in run.metrics
        ]


def test_what_is_no_number_is_not_logged(tmp_path):
    with TensorBoard(tmp_path) as progress:
        simulate(SGD(), LeastSquares(), progress=progress, **SMALL)
    assert set(events_of(tmp_path).Tags()["scalars"]) == {"loss", "consensus", "bytes"}


def test_settings_are_logged_by_their_names():
    run = simulate(LocalSGD(local_steps=3), LeastSquares(), **SMALL)
    found = settings(run.experiment)
    assert found["method"] == "offbeat.methods.LocalSGD" or found["method"].endswith("LocalSGD")
    assert found["method.local_steps"] == 3
    assert found["optimizer.lr"] == 0.1
    assert found["cluster.workers"] == 2


def test_the_command_logs_into_the_run_directory(tmp_path):
    options = ["--problem", "LeastSquares", "--cluster.workers", "2", "--budget.samples", "640"]
    argv = ["simulate", "--method", "SGD", *options, "--log", "tensorboard"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    stored = events_of(tmp_path / "run/tensorboard")
    assert stored.Scalars("loss")
    assert stored.Tags()["tensors"] == ["settings/text_summary"]


def test_wandb_offline_writes_its_file_and_calls_no_one(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = WeightsAndBiases(project="test", directory=tmp_path)
    try:
        run = simulate(SGD(), LeastSquares(), progress=logged, **SMALL)
        summary = dict(logged._run.summary)
    finally:
        logged.close()
        wandb.teardown()
    last = run.metrics[-1]
    assert (summary["samples"], summary["seconds"]) == (last.samples, last.seconds)
    assert summary["loss"] == pytest.approx(last.loss)
    assert "accuracy" not in summary
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert stored.stat().st_size > 0


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    argv = ["simulate", "--method", "SGD", "--problem", "LeastSquares", "--log", package]
    assert main([*argv, "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"offbeat: {package} is not installed: pip install 'offbeat[{package}]'"
    assert list(tmp_path.iterdir()) == []
