"""Clusters that have a name: as data, on the command line, in config files, simulated."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from offbeat.cli import main
from offbeat.cluster import (
    Access,
    Backbone,
    Cluster,
    Constant,
    Exponential,
    Fault,
    Lognormal,
    preset,
)
from offbeat.cluster.catalogue import about, preset_names
from offbeat.config import build, experiment_parser, parse
from offbeat.experiment import Budget, to_config
from offbeat.methods import ADPSGD, AllReduceSGD, AsyncSGD
from offbeat.runtime.simulated import Simulation
from offbeat.testing import small_experiment

NAMES = ("datacentre", "home-internet", "one-straggler", "spot-instances", "two-data-centres")
every_preset = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cluster_of(*options):
    parser = experiment_parser("offbeat simulate")
    return build(parser, parse(parser, ["--method", "ADPSGD", *options])).cluster


def test_the_catalogue_is_complete():
    assert preset_names() == list(NAMES)


@every_preset
def test_a_preset_is_plain_data(name, here):
    cluster = preset(name)
    Path("cluster.yaml").write_text(yaml.safe_dump({"cluster": to_config(cluster)}))
    assert cluster_of("--config", "cluster.yaml") == cluster
    assert cluster.workers == 8
    assert "\n" not in about(name)


def test_a_preset_says_what_its_file_says():
    assert preset("one-straggler") == Cluster(workers=8, slow={0: 4.0})
    assert preset("home-internet").access[7] == Access(up=1.34e6, down=26.54e6, latency=0.014)
    assert preset("spot-instances").faults[0] == Fault(kind="leave", rank=1, at=0.2)
    assert preset("two-data-centres").backbone == Backbone(latency=0.03, bandwidth=8.3e6)


@every_preset
@pytest.mark.parametrize("workers", [1, 2, 3, 8, 20])
def test_a_preset_fits_any_number_of_workers(name, workers):
    cluster = preset(name, workers=workers)
    assert cluster.workers == workers
    cluster.require_nodes(workers + 1)
    whole = preset(name)
    assert cluster.slow == {k: v for k, v in whole.slow.items() if k < workers}
    assert cluster.access == {k: v for k, v in whole.access.items() if k < workers}
    assert cluster.faults == tuple(fault for fault in whole.faults if fault.rank < workers)


def test_a_site_without_workers_is_left_out_with_its_backbone():
    one = preset("two-data-centres", workers=2)
    assert [site.nodes for site in one.sites] == [(0, 1)]
    assert one.backbone is not None


@every_preset
@pytest.mark.parametrize("method", [ADPSGD(), AsyncSGD()], ids=repr)
def test_a_preset_is_simulated_to_its_end(name, method):
    experiment = small_experiment(method, cluster=preset(name), budget=Budget(seconds=2.0), lr=0.01)
    run = Simulation(experiment).run()
    assert run.error is None
    assert run.stop == "seconds"
    assert run.metrics[-1].loss < run.metrics[0].loss
    busy = set(run.trace.gradients["node"].tolist())
    assert busy == set(range(8))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"spot-instances"}))
def test_collectives_work_on_every_preset_that_keeps_its_workers(name):
    experiment = small_experiment(AllReduceSGD(), cluster=preset(name), steps=20)
    run = Simulation(experiment).run()
    assert (run.error, run.stop) == (None, "samples")


def test_two_data_centres_are_slower_for_a_collective_than_one():
    seconds = [
        Simulation(
            small_experiment(
                AllReduceSGD(), cluster=replace(preset(name), compute=Constant()), steps=5
            )
        )
        .run()
        .trace.gradients["end_ns"]
        .max()
        for name in ("datacentre", "two-data-centres")
    ]
    # Fourteen steps of a ring cross 30 ms each, of four rounds that end before the last gradient.
    assert seconds[1] - seconds[0] > 4 * 0.03 * 1e9


def test_spot_instances_come_and_go():
    experiment = small_experiment(
        AsyncSGD(), cluster=preset("spot-instances"), budget=Budget(seconds=2.0), lr=0.01
    )
    gradients = Simulation(experiment).run().trace.gradients
    starts = gradients["start_ns"][gradients["node"] == 1] / 1e9
    assert ((starts < 0.25) | ((starts >= 0.6) & (starts < 1.35)) | (starts >= 1.7)).all()
    for begin, end in ((0, 0.2), (0.6, 1.3), (1.7, 2.0)):
        assert ((starts >= begin) & (starts < end)).sum() > 5


# On the command line and in files


def test_a_name_on_the_command_line_with_single_settings_over_it():
    assert cluster_of("--cluster", "one-straggler") == preset("one-straggler")
    assert cluster_of("--cluster=one-straggler", "--cluster.workers", "3") == preset(
        "one-straggler", workers=3
    )
    changed = cluster_of("--cluster.latency", "0.5", "--cluster", "home-internet")
    assert changed == replace(preset("home-internet"), latency=0.5)


def test_another_distribution_starts_from_its_own_defaults(here):
    Path("slow.yaml").write_text(
        "cluster:\n  preset: one-straggler\n"
        "  compute: {class_path: Lognormal, init_args: {seconds: 2}}\n"
    )
    options = ["--config", "slow.yaml", "--cluster.compute"]
    assert cluster_of(*options, "Exponential").compute == Exponential(seconds=0.01)
    assert cluster_of(*options, "Lognormal").compute == Lognormal(seconds=2.0, sigma=0.2)
    assert cluster_of(*options, "Exponential").slow == {0: 4.0}


def test_a_name_in_a_config_file_with_later_files_and_options_over_it(here):
    Path("a.yaml").write_text("cluster: home-internet\n")
    Path("b.yaml").write_text("cluster: {workers: 3, latency: 0.5}\n")
    Path("c.yaml").write_text("cluster: {preset: home-internet, workers: 3}\n")
    trimmed = preset("home-internet", workers=3)
    assert cluster_of("--config", "a.yaml") == preset("home-internet")
    assert cluster_of("--config", "a.yaml", "--config=b.yaml") == replace(trimmed, latency=0.5)
    assert cluster_of("--config", "c.yaml") == trimmed
    assert cluster_of("--config", "c.yaml", "--cluster.workers=2").access.keys() == {0, 1}
    # What names a cluster anew starts from that.
    assert cluster_of("--config", "b.yaml", "--config", "a.yaml") == preset("home-internet")
    assert cluster_of("--config", "b.yaml", "--cluster", "datacentre") == preset("datacentre")


def test_a_cluster_may_still_be_a_mapping_or_a_file_of_one(here):
    Path("mine.yaml").write_text("workers: 5\n")
    assert cluster_of("--cluster", "{workers: 3, latency: 0.5}") == Cluster(workers=3, latency=0.5)
    assert cluster_of("--cluster", "mine.yaml").workers == 5


def test_only_what_the_preset_says_is_trimmed(here):
    Path("a.yaml").write_text("cluster: {preset: one-straggler, workers: 2, slow: {3: 2.0}}\n")
    with pytest.raises(ValueError, match=r"cluster\.slow names worker 3 of 2"):
        cluster_of("--config", "a.yaml")


def test_a_run_with_a_named_cluster_is_repeated_from_its_directory(here, capsys):
    argv = ["simulate", "--method", "ADPSGD", "--problem", "LeastSquares"]
    argv += ["--cluster", "two-data-centres", "--budget.samples", "400", "--out", "first"]
    assert main(argv) == 0
    assert main(["simulate", "--config", "first/experiment.yaml", "--out", "second"]) == 0
    texts = [Path(folder, "metrics.csv").read_text() for folder in ("first", "second")]
    assert texts[0] == texts[1]
    sites = yaml.safe_load(Path("first/experiment.yaml").read_text())["cluster"]["sites"]
    assert sites == [{"name": "west", "nodes": [0, 1, 2, 3]}]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cluster", "one-stragler"], "there is no cluster one-stragler; did you mean one-str"),
        (["--cluster", "xyzzy"], f"there is no cluster xyzzy; there are {', '.join(NAMES)}"),
        (["--config", "a.yaml"], "there is no cluster two-datacentres; did you mean two-data-cen"),
        (
            ["--cluster", "one-straggler", "--cluster.workers", "0"],
            "cluster.workers is 0; it must be at least 1",
        ),
        (
            ["--cluster", "spot-instances", "--method", "AllReduceSGD"],
            "AllReduceSGD lets no worker join late; drop the fault or use a method of which "
            "`offbeat methods` says that it survives a loss",
        ),
    ],
)
def test_bad_names_get_one_line_and_leave_nothing(options, told, here, capsys):
    Path("a.yaml").write_text("cluster: two-datacentres\n")
    assert main(["simulate", "--method", "ADPSGD", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"offbeat: {told}")
    assert len(error.splitlines()) == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["a.yaml"]


def test_presets_are_listed(capsys):
    assert main(["clusters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cluster", *NAMES]
    assert main(["clusters", "--all"]) == 2
    assert "`offbeat clusters` takes no options, not --all" in capsys.readouterr().err
