"""A run directory: written whole or not at all, and read again as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import offbeat
from offbeat import Budget, Cluster, Fault
from offbeat.methods import ADPSGD
from offbeat.parameters import Layout
from offbeat.runs import Run, load_parameters, load_run
from offbeat.trace import Trace

FILES = ("experiment.yaml", "metrics.csv", "trace.npz", "model.safetensors", "run.json")


@pytest.fixture(scope="module")
def run() -> Run:
    made = offbeat.simulate(
        ADPSGD(),
        cluster=Cluster(workers=3, faults=(Fault(kind="crash", rank=2, at=0.01),)),
        budget=Budget(samples=1600),
    )
    assert made.notes
    return made


def test_a_run_is_read_as_it_was_saved(run: Run, tmp_path: Path):
    run.save(tmp_path / "first")
    stored = load_run(tmp_path / "first")
    assert stored.metrics == run.metrics
    assert stored.trace.hash() == run.trace.hash()
    assert torch.equal(stored.vector, run.vector)
    assert stored.layout == run.layout
    for name in ("mode", "seconds", "stop", "error", "notes"):
        assert getattr(stored, name) == getattr(run, name)
    assert stored.experiment.method == run.experiment.method
    assert stored.experiment.cluster == run.experiment.cluster
    assert stored.experiment.evaluator == run.resolved["evaluator"], "that it ran with"
    stored.save(tmp_path / "second")
    for name in FILES:
        if name != "trace.npz":
            first, second = (tmp_path / folder / name for folder in ("first", "second"))
            assert first.read_bytes() == second.read_bytes()


def test_rows_that_are_not_finite_are_kept(run: Run, tmp_path: Path):
    run.save(tmp_path)
    path = tmp_path / "metrics.csv"
    header, *rows = path.read_text().splitlines()
    rows.append("1.5,10,1,nan,nan,inf,3")
    path.write_text("\n".join([header, *rows]) + "\n")
    resize(tmp_path, "metrics.csv")
    last = load_run(tmp_path).metrics[-1]
    assert math.isnan(last.loss)
    assert math.isnan(last.accuracy)
    assert last.consensus == math.inf
    assert last.bytes == 3


def resize(folder: Path, name: str) -> None:
    """Let the directory agree to that file's present size."""
    summary = json.loads((folder / "run.json").read_text())
    summary["bytes"][name] = (folder / name).stat().st_size
    (folder / "run.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(name: str, run: Run, tmp_path: Path):
    run.save(tmp_path)
    (tmp_path / name).unlink()
    expected = f"{tmp_path / name} is missing"
    if name == "run.json":
        expected = f"{tmp_path} has no run.json: it is no run directory, or its run did not finish"
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_run(tmp_path)
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_file_that_is_truncated_is_named(name: str, kept: float, run: Run, tmp_path: Path):
    run.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_run(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / name} cannot be read: ")
    assert "\n" not in text
    if name != "run.json":
        assert f"it has {int(kept * len(whole)):,} bytes, and had {len(whole):,} when" in text


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_something_else_is_named(name: str, run: Run, tmp_path: Path):
    run.save(tmp_path)
    (tmp_path / name).write_bytes(b"- \xff nonsense\n")
    if name != "run.json":
        resize(tmp_path, name)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_run(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name} ")
    assert "\n" not in str(caught.value)


def test_a_summary_that_lacks_something_is_damaged(run: Run, tmp_path: Path):
    run.save(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is damaged: it lacks 'layout'"):
        load_run(tmp_path)


def test_a_damaged_model_is_named_and_one_of_other_parameters_too(run: Run, tmp_path: Path):
    run.save(tmp_path)
    assert torch.equal(load_parameters(tmp_path, run.layout), run.vector)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it lacks 'w'"):
        load_parameters(tmp_path, Layout(("w",), ((1,),)))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: "):
        load_parameters(tmp_path, run.layout)


def test_a_save_that_is_cut_short_leaves_no_run_and_nothing_truncated(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run.save(tmp_path)
    before = (tmp_path / "trace.npz").read_bytes()

    def interrupted(self: Trace, path: Path) -> None:
        path.write_bytes(before[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trace, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.save(tmp_path)
    assert (tmp_path / "trace.npz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(set(FILES) - {"run.json"})
    with pytest.raises(ValueError, match=r"has no run\.json"):
        load_run(tmp_path)
    run.save(tmp_path)
    assert load_run(tmp_path).metrics == run.metrics
