"""The report as a browser shows it: headless Chromium, from the file, without a network."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
from base64 import b64decode

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from playwright.sync_api import expect, sync_playwright

from offbeat import Budget, Cluster, simulate
from offbeat.cli import main
from offbeat.cluster import Fault
from offbeat.methods import ADPSGD, SGD, AllReduceSGD, AsyncSGD, LocalSGD
from offbeat.problems import LeastSquares
from offbeat.report.html import find_runs, write_report
from offbeat.report.html.arrays import binned
from offbeat.report.html.network import network_data
from offbeat.report.html.sources import named_runs
from offbeat.report.html.staleness import gradient_owners
from offbeat.report.html.styles import styles
from offbeat.report.html.summary import summary_cells
from offbeat.report.html.timeline import timeline_data
from offbeat.report.plots import FAMILY_COLOURS

CHROMIUM = shutil.which("chromium")
HOSTILE = "<script>alert(1)</script>&amp;\"'"


def run_of(method, problem=None, **settings):
    settings.setdefault("cluster", Cluster(workers=4, slow={2: 4.0}))
    settings.setdefault("budget", Budget(samples=1600))
    return simulate(method, problem, **settings)


@pytest.fixture(scope="module")
def runs():
    faults = (Fault(kind="crash", rank=1, at=0.1), Fault(kind="join", rank=3, at=0.05))
    return {
        "async": run_of(AsyncSGD()),
        HOSTILE: run_of(ADPSGD(), cluster=Cluster(workers=4, faults=faults)),
        "diverged": run_of(AllReduceSGD(), optimizer=functools.partial(torch.optim.SGD, lr=1e30)),
        "alone": run_of(SGD(), LeastSquares()),
    }


@pytest.fixture(scope="module")
def page_file(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed; .ci/run installs it")
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, page_file):
    """`opened(width, scheme)`: the page, which must not complain or ask for anything."""
    contexts, complaints = [], []

    def open_page(width=1440, scheme="light", path=page_file):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def traces(page, selector):
    """What Plotly has drawn there: name, x and y of each trace, NaN as None."""
    return page.evaluate(
        """selector => document.querySelector(selector).data.map(t => ({
            name: t.name, x: Array.from(t.x ?? []), y: Array.from(t.y ?? []), visible: t.visible,
        }))""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_every_section_is_there_and_fits(opened, width, scheme):
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    headings = page.locator("h2").all_inner_texts()
    assert headings == ["Digits, test part", "LeastSquares, test part"]
    for name in ("timeline", "staleness", "network"):
        assert page.locator(f"figure.{name}").count() == 2
    drawn = page.locator("[data-plot=timeline].js-plotly-plot .barlayer path")
    assert drawn.count() > 20
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_table_says_the_runs_numbers(opened, runs):
    page = opened()
    rows = page.locator("table.summary tbody tr")
    found = {
        row.locator("th").inner_text().strip(): row.locator("td").all_inner_texts()
        for row in rows.all()
    }
    assert found == {name: summary_cells(run) for name, run in runs.items()}
    assert found["async"][1:3] == ["0.1", f"{runs['async'].metrics[-1].accuracy:.2%}"]
    assert found["diverged"][1] == "1e+30"
    assert found["alone"][2] == "\u2013"


def test_an_error_is_in_plain_sight(opened, runs):
    error = opened().locator("p.error").inner_text()
    assert error == f"diverged failed: {runs['diverged'].error}"


def test_curves_are_the_metrics_and_the_switch_changes_their_axis(opened, runs):
    page = opened()
    rows = runs["async"].metrics
    for axis in ("seconds", "samples", "bytes"):
        page.locator(f".group:first-child input[value={axis}]").check(force=True)
        line = traces(page, "[data-group='0'] [data-curve=accuracy]")[0]
        assert line["x"] == pytest.approx([getattr(row, axis) for row in rows])
        assert line["y"] == pytest.approx([row.accuracy for row in rows])
    # Only that problem's runs share the axis; the other has no accuracy, and shows its loss.
    names = {t["name"] for t in traces(page, "[data-group='0'] [data-curve=accuracy]")}
    assert "alone" not in names
    assert page.locator("[data-group='1'] figure.accuracy").is_hidden()
    loss = traces(page, "[data-group='1'] [data-curve=loss]")[0]["y"]
    assert loss == pytest.approx([row.loss for row in runs["alone"].metrics])


def test_a_loss_that_is_no_number_breaks_the_line(opened, runs):
    diverged = [
        t for t in traces(opened(), "[data-group='0'] [data-curve=loss]") if t["name"] == "diverged"
    ]
    assert not np.isfinite(runs["diverged"].metrics[-1].loss)
    assert diverged[0]["y"][-1] is None


def test_runs_are_hidden_by_the_legend(opened):
    page = opened()
    page.locator(".legend button").first.click()
    shown = traces(page, "[data-group='0'] [data-curve=accuracy]")
    assert [t["visible"] for t in shown if t["name"] == "async"] == [False]


def opacities(page):
    return page.evaluate(
        "document.querySelector('[data-curve=accuracy]').data.map(t => [t.name, t.opacity])"
    )


def test_the_run_pointed_at_in_the_legend_stands_out(opened):
    page = opened()
    chip = page.locator("[data-group='0'] .legend button").first
    chip.hover()
    shares = opacities(page)
    assert {share for name, share in shares if name == "async"} == {1}
    assert all(share < 0.3 for name, share in shares if name != "async")
    page.mouse.move(0, 0)
    assert {share for _, share in opacities(page)} == {1}
    page.locator("[data-group='0'] .switch input").first.focus()
    page.keyboard.press("Tab")
    assert opacities(page) == shares
    # A hidden run leaves the others as they were.
    page.keyboard.press("Enter")
    assert {share for _, share in opacities(page)} == {1}


@pytest.fixture(scope="module")
def long_names(runs, tmp_path_factory):
    named = {
        f"AdaptiveDelayCompensatedSGD, workers 16, slow {{3: 4}}, lr {10.0**-k:g}": runs["async"]
        for k in range(6)
    }
    return write_report(named, tmp_path_factory.mktemp("long") / "report.html")


@pytest.mark.parametrize("width", [375, 1440])
def test_long_names_keep_to_their_places(opened, long_names, width):
    page = opened(width, path=long_names)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for row in page.locator("table.summary tbody tr").all():
        name = row.locator(".name")
        assert name.evaluate("box => box.scrollWidth <= box.clientWidth")
        box = name.bounding_box()
        assert box["x"] + box["width"] <= row.locator("td").first.bounding_box()["x"]
    for chip in page.locator(".legend button").all():
        box = chip.bounding_box()
        assert box["x"] + box["width"] <= width
        assert chip.get_attribute("title").startswith("AdaptiveDelayCompensatedSGD, workers 16")
    chooser = page.locator(".chooser select").bounding_box()
    assert chooser["x"] + chooser["width"] <= width
    # The label is one line, not a letter a line.
    assert page.locator(".chooser span").bounding_box()["height"] < 30


def test_a_wide_screen_shows_the_whole_table(opened, long_names):
    scroller = opened(path=long_names).locator(".scroller")
    assert scroller.evaluate("box => box.scrollWidth <= box.clientWidth")


def window(page):
    return page.evaluate("document.querySelector('[data-plot=timeline]').layout.xaxis.range")


def test_the_timeline_shows_each_event_and_zooms(opened, runs):
    page = opened()
    start, end = window(page)
    table = runs["async"].trace.gradients
    bars = next(t for t in traces(page, "[data-plot=timeline]") if t["name"] == "computing")
    inside = table[(table["start_ns"] / 1e9 <= end) & (table["end_ns"] / 1e9 >= start)]
    assert sorted(bars["y"]) == sorted(inside["node"].tolist())
    page.locator("[data-move=in]").first.click()
    assert window(page) == pytest.approx([start + (end - start) / 4, end - (end - start) / 4])
    page.locator("[data-move=whole]").first.click()
    assert window(page)[0] == 0
    assert window(page)[1] >= runs["async"].seconds
    page.evaluate(
        "Plotly.relayout(document.querySelector('[data-plot=timeline]'), "
        "{'xaxis.range[0]': 0.01, 'xaxis.range[1]': 0.02})"
    )
    hint = page.locator(".timeline .hint").first
    expect(hint).to_contain_text("10.00 ms to 20.00 ms")


def test_the_chosen_run_is_shown_with_its_faults(opened, runs):
    page = opened()
    group = page.locator("[data-group='0']")
    group.locator("select").select_option(index=1)
    faults = group.locator(".faults li:visible").all_inner_texts()
    assert faults == ["worker 3: join at 0.050 s", "worker 1: crash at 0.100 s"]
    marked = next(t for t in traces(page, "[data-plot=timeline]") if t["name"] == "faults")
    assert sorted(zip(marked["x"], marked["y"], strict=True)) == [(0.05, 3), (0.1, 1)]


def test_staleness_is_counted_by_worker(opened, runs):
    bars, by_node = opened().evaluate(
        "document.querySelector('[data-plot=staleness]').data.map(t => t.customdata)"
    )
    total = sum(int(count.replace(",", "")) for _, count in bars)
    assert total == len(runs["async"].staleness)
    assert [row[0][2] for row in by_node] == [f"worker {k}" for k in range(4)]


def test_averagings_are_said_not_to_be_counted(opened):
    page = opened()
    hint = page.locator("[data-group='0'] .staleness .hint")
    chooser = page.locator("[data-group='0'] select")
    said = "Averaging with neighbours is no optimizer step, and is not counted."
    chooser.select_option(label=HOSTILE)
    assert hint.inner_text() == f"Staleness was 0 throughout. {said}"
    chooser.select_option(label="diverged")
    assert hint.inner_text() == "Staleness was 0 throughout."


def test_the_copy_button_holds_the_command(opened, runs, tmp_path):
    run = runs["async"]
    run.save(tmp_path / "a run")
    path = write_report([tmp_path / "a run"], tmp_path / "report.html")
    page = opened(path=path)
    command = f"offbeat simulate --config '{tmp_path}/a run/experiment.yaml'"
    assert page.locator(".command code").inner_text() == command
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".copy").click()
    expect(page.locator(".copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == command
    page.locator("summary").click()
    assert page.locator("pre").inner_text() == (tmp_path / "a run/experiment.yaml").read_text()


def test_many_workers_and_events_stay_usable(opened, tmp_path):
    run = run_of(
        SGD(),
        LeastSquares(samples=4000),
        cluster=Cluster(workers=64),
        budget=Budget(samples=64 * 8 * 150),
        evaluate_every=10**6,
    )
    page = opened(path=write_report({"many": run}, tmp_path / "report.html"))
    page.locator("[data-move=whole]").click()
    assert [t["name"] for t in traces(page, "[data-plot=timeline]")] == ["shares"]
    assert "9,600 events are too many to draw" in page.locator(".timeline .hint").inner_text()


# What needs no browser


def test_no_element_comes_from_a_name(page_file):
    page = page_file.read_text()
    assert HOSTILE not in page
    assert "<script>alert" not in page
    data = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["groups"][0]["runs"][1]["name"] == HOSTILE


def test_the_same_runs_give_the_same_file(runs, page_file, tmp_path):
    again = write_report(runs, tmp_path / "again.html")
    assert again.read_bytes() == page_file.read_bytes()


def test_amounts_are_spread_over_bins():
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    found = binned(np.array([0.5, 2.5]), np.array([2.0, 2.5]), np.array([3.0, 7.0]), edges)
    assert found == pytest.approx([1.0, 2.0, 7.0])


def test_the_networks_load_adds_up_to_the_bytes_sent(runs):
    run = runs["async"]
    found = network_data(run)
    total = np.frombuffer(b64decode(found["total"]["bdata"]), "<f8")
    assert total.sum() * found["width"] == pytest.approx(run.metrics[-1].bytes, rel=1e-6)


def test_colocated_nodes_send_nothing_between_them():
    run = run_of(AsyncSGD(servers=2, colocated=True))
    found = network_data(run)
    total = np.frombuffer(b64decode(found["total"]["bdata"]), "<f8")
    assert total.sum() * found["width"] == pytest.approx(run.metrics[-1].bytes, rel=1e-6)


def test_gradients_of_a_server_are_those_of_its_workers(runs):
    run = runs["async"]
    owners = gradient_owners(run)
    computed = np.bincount(run.trace.gradients["node"], minlength=4)
    assert np.bincount(owners, minlength=4).tolist() == computed.tolist()
    # The slow worker's gradients are the stalest.
    means = [run.staleness[owners == k].mean() for k in range(4)]
    assert max(range(4), key=means.__getitem__) == 2


def test_too_many_events_are_cut_to_a_stretch_and_counted(runs):
    found = timeline_data(runs["async"], most=50)
    assert found["events_kept"] < found["events"]
    assert found["kept"][0] == 0 < found["kept"][1] < found["seconds"]
    assert found["view"][1] <= found["kept"][1]


def test_the_first_view_holds_few_gradients_of_many_workers():
    run = run_of(AsyncSGD(), cluster=Cluster(workers=16), budget=Budget(samples=6400))
    begin, end = timeline_data(run)["view"]
    ends = run.trace.gradients["end_ns"] / 1e9
    assert begin == 0
    assert 60 <= (ends <= end).sum() <= 100


def test_the_first_view_reaches_the_first_message():
    run = run_of(LocalSGD(local_steps=50), budget=Budget(samples=16 * 4 * 200))
    begin, end = timeline_data(run)["view"]
    assert begin == 0
    assert run.trace.messages["end_ns"].min() / 1e9 <= end < run.seconds


def test_names_say_what_sets_runs_apart():
    plain = run_of(AsyncSGD(), cluster=Cluster(workers=4), budget=Budget(samples=320))
    slow = run_of(
        AsyncSGD(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.03),
        budget=Budget(samples=320),
        evaluator="serial",
    )
    real = dataclasses.replace(slow, mode="processes")
    other = run_of(ADPSGD(), budget=Budget(samples=320))
    assert [entry.name for entry in named_runs([plain, slow, real, other])] == [
        "AsyncSGD, lr 0.1",
        "AsyncSGD, slow {2: 4}, lr 0.03",
        "AsyncSGD, slow {2: 4}, lr 0.03 (real)",
        "ADPSGD",
    ]
    assert [entry.name for entry in named_runs({"mine": real})] == ["mine (real)"]
    assert [entry.name for entry in named_runs([slow, slow])] == ["AsyncSGD (1)", "AsyncSGD (2)"]


def test_runs_of_one_family_can_be_told_apart(runs):
    found = styles([runs["async"]] * 24)
    for ground in ("light", "dark"):
        looks = [(getattr(style, ground), style.dash) for style in found]
        assert len(set(looks)) == 24
        for (one, dash), (other, same) in itertools.combinations(looks[:7], 2):
            distance = np.abs(np.subtract(to_rgb(one), to_rgb(other))).max()
            assert dash != same or distance > 0.2
    assert found[0].light == FAMILY_COLOURS["parameter server"].lower()


def test_runs_of_a_comparison_are_in_its_order(runs, tmp_path):
    for name in ("SlowMo-seed-0", "SGD-seed-1", "SGD-seed-0", "LocalSGD-local_steps=4", "another"):
        runs["alone"].save(tmp_path / name)
    (tmp_path / "comparison.csv").write_text(
        "method,seed\nSlowMo,0\nSGD,0\nSGD,1\nLocalSGD(local_steps=4),0\nfailed,\n"
    )
    names = [path.name for path in find_runs([tmp_path])]
    assert names == [
        "SlowMo-seed-0",
        "SGD-seed-0",
        "SGD-seed-1",
        "LocalSGD-local_steps=4",
        "another",
    ]


def test_runs_are_found_in_comparisons_and_sweeps(runs, tmp_path):
    for path in ("one", "compared/a", "compared/b", "sweep/cells/x"):
        runs["alone"].save(tmp_path / path)
    (tmp_path / "compared/plots").mkdir()
    found = find_runs([tmp_path / "one", tmp_path / "compared", tmp_path / "sweep"])
    names = ["one", "compared/a", "compared/b", "sweep/cells/x"]
    assert [str(path.relative_to(tmp_path)) for path in found] == names


def test_the_command_writes_the_file(runs, tmp_path, capsys):
    runs["alone"].save(tmp_path / "run")
    out = tmp_path / "made.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert "SGD on LeastSquares" in out.read_text()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "there is nothing to report on; give at least one run directory"),
        (["nowhere"], "there is no directory nowhere"),
        (["empty"], "empty has no run.json: it is no run directory, or its run did not finish"),
        (["run", "--out", "empty"], "--out empty is a directory; give the name of a file"),
        (["run", "--out", "missing/r.html"], "cannot write --out missing/r.html: No such file"),
        (["damaged"], "damaged/metrics.csv is missing"),
    ],
)
def test_bad_input_is_one_line(runs, argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("run", "damaged"):
        runs["alone"].save(tmp_path / name)
    (tmp_path / "damaged/metrics.csv").unlink()
    assert main(["report", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "run", "damaged"}
