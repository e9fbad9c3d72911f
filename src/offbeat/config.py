"""Experiments from YAML files and command-line options, by jsonargparse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

# The registries, so that their classes can be named without a path.
from . import methods as methods
from . import optim as optim
from . import problems as problems
from .cluster.catalogue import preset_config
from .experiment import DEFAULT_SAMPLES, Experiment, OptimizerClass
from .options import CLASSES, spelled_out, value_of
from .userfile import import_path, is_reference, reference

Config = dict[str, Any]

DEFAULTS: Config = {
    "problem": {"class_path": "offbeat.problems.Digits"},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
}
COMMAND_KEYS = (
    *("out", "plots", "log", "workers"),
    *("join", "slots", "secret", "tls", "patience", "nodes", "rsh", "checkpoint", "resume"),
)
"""What `--print_config` prints of the command; a config file describes an experiment only."""


def experiment_parser(
    prog: str,
    purpose: str = "",
    formatter_class: type[DefaultHelpFormatter] = DefaultHelpFormatter,
    skip: Iterable[str] = (),
) -> ArgumentParser:
    """A parser with an option for every field of an experiment, `--workers` and `--config`."""
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=formatter_class,
        description=f"{purpose} If not given, the problem is Digits, the optimizer is SGD with "
        f"learning rate 0.1, and the budget is {DEFAULT_SAMPLES:,} samples. Classes are named "
        "as `AsyncSGD`, `package.module.Name` or `my_file.py:Name`; their settings are options "
        "such as `--method.servers 2`.",
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of any of the options; several are merged"
    )
    parser.add_argument("--workers", type=int | None, help="short for --cluster.workers")
    parser.add_class_arguments(Experiment, None, skip=set(skip))
    for action in parser._actions:
        # `parse` gives them their defaults.
        if action.dest in DEFAULTS:
            action.required = False
    return parser


def parse(
    parser: ArgumentParser,
    options: Sequence[str],
    defaults: Mapping[str, Any] = DEFAULTS,
    ignored: Iterable[str] = (),
) -> Namespace:
    """Parse options over config files over defaults.

    A class that is named anew starts from its own defaults: the learning rate of SGD in a file is
    not that of `--optimizer Adam`. So does a cluster that is named: `--cluster one-straggler`.
    Keys of `ignored` are dropped from config files.
    """
    config: Config = dict(defaults)
    rest: list[str] = []
    waiting = iter(options)
    for option in waiting:
        key, equals, value = option.partition("=")
        if key == "--config":
            path = value if equals else next(waiting, None)
            if path is None:
                raise ValueError("--config needs the path of a YAML file")
            config = merged(config, read_config(Path(path)))
        else:
            rest.append(option)
    named, rest = _cluster_named(spelled_out(rest))
    cluster: Any = config.get("cluster", {}) if named is None else named
    config["cluster"] = {"preset": cluster} if isinstance(cluster, str) else cluster
    for key in ("cluster", "budget"):
        part = config.get(key, {})
        if not isinstance(part, dict):
            raise ValueError(f"{key} must be a mapping of its settings, not {part!r}")
    _require_budget_mapping(value_of("--budget", rest))
    for key in (*COMMAND_KEYS, *ignored):
        config.pop(key, None)
    cluster = _cluster(config["cluster"], value_of("--cluster.workers", rest))
    _forget_others(cluster, ("compute",), "--cluster.", rest)
    config["cluster"] = cluster
    _forget_others(config, CLASSES, "--", rest)
    budget = ("--budget", "--budget.samples", "--budget.seconds")
    given = any(option.partition("=")[0] in budget for option in rest)
    limits: Mapping[str, Any] = config.get("budget") or {}
    if not given and limits.get("samples") is None and limits.get("seconds") is None:
        config["budget"] = {**limits, "samples": DEFAULT_SAMPLES}
    parsed = parser.parse_args(["--config", yaml.safe_dump(config), *rest])
    for key in DEFAULTS:
        if parsed[key] is None:
            raise ValueError(f"{key} is null; name a class, or leave it out for the default")
    return parsed


def build(parser: ArgumentParser, parsed: Namespace, **given: Any) -> Experiment:
    """The experiment that options describe; `given` are the fields that the parser skips."""
    fields = parser.instantiate(parsed)
    names = inspect.signature(Experiment).parameters
    values = {name: fields[name] for name in names if name in fields} | given
    values["optimizer"] = _optimizer(parsed.optimizer)
    return Experiment(**values)


def resolved(parsed: Namespace) -> Config:
    """What `to_config` cannot know of an experiment: the function that made its problem."""
    made_by = parsed.problem.class_path
    module, _, name = made_by.rpartition(".")
    maker = getattr(__import__(module, fromlist=[name]), name)
    if isinstance(maker, type):
        return {}
    settings = parsed.problem.get("init_args") or Namespace()
    return {"problem": {"class_path": reference(maker), "init_args": settings.as_dict()}}


def load_experiment(path: Path) -> Experiment:
    """The experiment of a YAML file, such as a run directory's experiment.yaml.

    Raises:
        ValueError: the file is missing or says something that cannot be.
    """
    parser = experiment_parser("offbeat")
    try:
        return build(parser, parse(parser, ["--config", str(path)]))
    except ArgumentError as error:
        reason = str(error).strip().rpartition("\n")[2].strip()
        raise ValueError(f"{path} describes no experiment: {reason}") from error


def read_config(path: Path) -> Config:
    """The mapping in a YAML file; `my_file.py:MyMethod` is imported where it names a class.

    Raises:
        ValueError: in one line, for what cannot be read.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read config file {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"config file {path}{where} is no YAML: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"config file {path} holds no options: write lines such as `seed: 1`")
    try:
        return _imported_in(content)
    except RecursionError:
        raise ValueError(f"config file {path} holds something that holds itself") from None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    """`above` over `below`, key by key; a class with its settings gives way to another class."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key == "cluster" and isinstance(old, str) and isinstance(value, dict):
            old = {"preset": old}
        named = key == "cluster" and isinstance(value, dict) and "preset" in value
        if isinstance(old, dict) and isinstance(value, dict) and not named:
            same = _class_name(old) == _class_name(value)
            result[key] = merged(old, value) if same else value
        else:
            result[key] = value
    return result


def _optimizer(parsed: Namespace) -> OptimizerClass:
    """A plain partial: jsonargparse's own can be neither pickled nor written."""
    module, _, name = parsed.class_path.rpartition(".")
    made = getattr(__import__(module, fromlist=[name]), name)
    settings = parsed.get("init_args") or Namespace()
    defaults = {n: p.default for n, p in inspect.signature(made).parameters.items()}
    chosen = {
        key: value
        for key, value in settings.as_dict().items()
        if key == "lr" or key not in defaults or defaults[key] != value
    }
    return functools.partial(made, **chosen)


def _imported_in(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _imported_in(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_imported_in(value) for value in config]
    if isinstance(config, str) and is_reference(config):
        return import_path(config)
    return config


def _require_budget_mapping(given: str | None) -> None:
    """Refuse `--budget 300`; a mapping or a file that holds one is left to the parser."""
    if given is None or given.lstrip().startswith("{") or Path(given).is_file():
        return
    samples = given if given.isdecimal() else DEFAULT_SAMPLES
    raise ValueError(
        f"budget must be a mapping of its settings, not {given}; for example "
        f"--budget.samples {samples}"
    )


def _cluster_named(options: Sequence[str]) -> tuple[str | None, list[str]]:
    """The preset that `--cluster NAME` names, and the options without it.

    A mapping, or a file that holds one, is left in the options.
    """
    named = value_of("--cluster", options)
    if named is None or named.lstrip().startswith("{") or Path(named).is_file():
        return None, list(options)
    rest: list[str] = []
    waiting = iter(options)
    for option in waiting:
        if option == "--cluster":
            next(waiting, None)
        elif not option.startswith("--cluster="):
            rest.append(option)
    return named, rest


def _cluster(config: Mapping[str, Any], workers: str | None) -> Config:
    """A cluster's settings, over those of the preset that it names.

    `workers` is that option's value, where it is given. With fewer workers than the preset's own
    what the preset says of the others is left out.
    """
    own = {key: value for key, value in config.items() if key != "preset"}
    if "preset" not in config:
        return own
    count = own.get("workers")
    if workers is not None and workers.isdecimal():
        count = int(workers)
    known = count if isinstance(count, int) and count > 0 else None
    return merged(preset_config(str(config["preset"]), known), own)


def _forget_others(
    config: Config, keys: Iterable[str], prefix: str, options: Sequence[str]
) -> None:
    """Drop the settings of classes in whose place the options name others."""
    for key in keys:
        named = value_of(f"{prefix}{key}", options)
        if named is not None and key in config and _class_name(config[key]) != _last(named):
            del config[key]


def _class_name(value: Any) -> str | None:
    if isinstance(value, str):
        return _last(value)
    path = value.get("class_path") if isinstance(value, dict) else None
    return None if path is None else _last(path)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


__all__ = ["build", "experiment_parser", "load_experiment", "parse", "read_config"]
