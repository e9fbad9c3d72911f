"""Exports of the trace: what they hold is what the run recorded."""

import csv
import json

import pytest

from offbeat import Budget, Cluster, simulate
from offbeat.cli import main
from offbeat.cluster import Fault
from offbeat.methods import ADPSGD, AsyncSGD
from offbeat.report.export import write_csv_tables, write_perfetto
from offbeat.trace import LOST, TABLES, Rows


@pytest.fixture(scope="module")
def run():
    faults = (Fault(kind="crash", rank=1, at=0.05),)
    made = simulate(
        ADPSGD(),
        cluster=Cluster(workers=4, slow={2: 4.0}, faults=faults),
        budget=Budget(samples=1600),
    )
    messages = made.trace.messages.copy()
    messages["outcome"][10] = LOST
    made.trace.rows["messages"] = Rows(TABLES["messages"])
    made.trace.rows["messages"].extend(messages)
    return made


@pytest.fixture
def events(run, tmp_path):
    return json.loads(write_perfetto(run, tmp_path / "trace.json").read_text())["traceEvents"]


def of(events, phase, name=None):
    return [e for e in events if e["ph"] == phase and name in (None, e["name"])]


def test_slices_are_the_gradients_in_microseconds(run, events):
    names = {e["tid"]: e["args"]["name"] for e in of(events, "M", "thread_name")}
    found = sorted((names[e["tid"]], e["ts"], e["dur"]) for e in of(events, "X", "computing"))
    table = run.trace.gradients
    assert len(found) == len(table) > 0
    assert found == sorted(
        (f"worker {node}", start / 1e3, (end - start) / 1e3)
        for node, start, end, _ in table.tolist()
    )


def test_slices_of_one_thread_never_overlap(events):
    """Viewers show the slices of a thread wrongly unless they are nested or apart."""
    ends = {}
    for event in sorted(of(events, "X"), key=lambda e: (e["tid"], e["ts"], e["dur"])):
        assert event["ts"] >= ends.get(event["tid"], 0) - 1e-6
        ends[event["tid"]] = event["ts"] + event["dur"]


def test_each_message_that_arrived_is_a_flow_from_its_slice_to_the_receivers(run, events):
    starts = {e["id"]: e for e in of(events, "s")}
    finishes = {e["id"]: e for e in of(events, "f")}
    assert starts.keys() == finishes.keys()
    assert len(starts) == int((run.trace.messages["outcome"] == 0).sum()) > 0
    assert len(starts) == len(run.trace.messages) - 1
    slices = of(events, "X")
    for end in [*list(starts.values())[:20], *list(finishes.values())[:20]]:
        assert any(
            s["tid"] == end["tid"] and s["ts"] <= end["ts"] <= s["ts"] + s["dur"]
            for s in slices
            if s["name"] == end["name"]
        )


def test_staleness_is_a_counter_and_faults_are_instants(run, events):
    counted = sorted(e["args"]["staleness"] for e in of(events, "C"))
    assert counted == sorted(run.staleness.tolist())
    (crash,) = of(events, "i", "crash")
    assert crash["ts"] == pytest.approx(50_000)


def test_a_server_has_a_counter_of_its_own(tmp_path):
    run = simulate(AsyncSGD(), cluster=Cluster(workers=2), budget=Budget(samples=640))
    stored = json.loads(write_perfetto(run, tmp_path / "trace.json").read_text())
    assert {e["name"] for e in of(stored["traceEvents"], "C")} == {"staleness at server"}


def test_csv_tables_say_kinds_in_words(run, tmp_path):
    paths = write_csv_tables(run, tmp_path / "tables")
    assert [path.stem for path in paths] == list(TABLES)
    with (tmp_path / "tables/messages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.trace.messages)
    assert sum(int(row["bytes"]) for row in rows) == int(run.trace.messages["bytes"].sum())
    assert {row["kind"] for row in rows} == {"Offer", "Difference"}
    assert {row["outcome"] for row in rows} == {"delivered", "lost"}
    faults = (tmp_path / "tables/faults.csv").read_text().splitlines()
    assert faults == ["node,at_ns,kind,factor", "1,50000000,crash,1.0"]


def test_the_command_writes_both_formats(run, tmp_path, capsys):
    run.save(tmp_path / "run")
    assert main(["export", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]
    out = str(tmp_path / "csv")
    assert main(["export", str(tmp_path / "run"), "--format", "csv", "--out", out]) == 0
    assert (tmp_path / "csv/steps.csv").is_file()
    assert str(tmp_path / "csv") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["export", "nowhere"], "nowhere has no run.json"),
        (["export"], "directory"),
        (["export", "run", "--format", "pdf"], "format must be one of"),
        (["export", "run", "--out", "missing/trace.json"], "cannot write --out missing/trace.json"),
    ],
)
def test_bad_input_is_one_line(run, argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run.save(tmp_path / "run")
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
