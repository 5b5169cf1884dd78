"""What stands behind a command: made readable for Hydra, and checked before any job starts.

Every mistake in it becomes one `ZooError` that names the nearest names.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from zoo.errors import ZooError, unknown
from zoo.report import result

_HERE = Path(__file__).resolve().parent
# conf/ is in the package where a wheel was installed, and beside it in a checkout.
CONF = next(folder for folder in (_HERE / "conf", _HERE.parent / "conf") if (folder / "train.yaml").is_file())
PATHS = frozenset(
    {"backbone.pretrained", "checkpoint", "dataset.root", "input", "instance", "resume", "runs", "semantic", "weights"}
)
WORDS = frozenset({"backbone.pretrained", "trainer.freeze_norm"})  # false, or a word
OPEN = ("metric", "model.loss", "options")  # mappings that take further keys, with a plus
FURTHER = ("backbone", "optimizer")  # cards whose further keys are options of timm, with a plus
EXAMPLES = dict.fromkeys(("checkpoint", "semantic", "instance"), "runs/.../best.ckpt") | {"input": "picture.jpg"}


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the values that are paths, since most of what a path may hold means something to Hydra.

    In a multirun commas separate paths, unless the whole is the name of something that exists.
    """
    several = bool({"-m", "--multirun"} & set(arguments))
    return [_quote(argument, several) for argument in arguments]


def _quote(argument: str, several: bool) -> str:
    if argument == "model=combined":  # the group of models to train has no such card
        return "combined=true"
    key, _, value = argument.partition("=")
    if key.lstrip("+") not in PATHS or value in ("", "null", "true", "false") or value[0] in "'\"":
        return argument
    values = value.split(",") if several and not Path(value).exists() else [value]
    return f"{key}={','.join(map(_quoted, values))}"


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def check(command: str, options: Namespace) -> int:
    """Compose every job of a command, so that a mistake in the last one is found before the first one starts.

    Args:
        command: the name of the primary config ("train", "evaluate", "predict").
        options: the command line as Hydra's parser gives it.

    Returns how many jobs there are. Raises ZooError for names and keys nobody knows and values of another kind.
    """
    if options.multirun and options.cfg:
        raise ZooError("--cfg shows the config of one job: leave out -m")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = _parse(options.overrides)
        _add_sources(overrides, options.config_dir)
        sweeps = [item.input_line for item in overrides if item.is_sweep_override()]
        if sweeps and not (options.multirun or "hydra.mode=MULTIRUN" in options.overrides):
            raise ZooError(f"{sweeps[0]} names several values: add -m to run a job for each of them")
        jobs = BasicSweeper.split_arguments([item for item in overrides if not item.is_hydra_override()], None)[0]
        for texts in jobs:
            config = _check_job(command, _parse(texts))
            if not options.cfg:
                _check_complete(command, config)
    return len(jobs)


def _add_sources(overrides: Sequence[Override], config_dir: str | None) -> None:
    """The user's own cards, of --config-dir and hydra.searchpath, stand behind ours as Hydra has them."""
    if config_dir and not Path(config_dir).is_dir():
        raise ZooError(f"--config-dir {config_dir} is not a folder")
    extra = [f"file://{Path(config_dir).resolve()}"] if config_dir else []
    for item in overrides:
        if item.get_key_element() == "hydra.searchpath":
            extra += map(str, item.value())  # type: ignore[arg-type]
    loader = GlobalHydra.instance().config_loader()
    search = loader.get_search_path()
    for path in extra:
        search.prepend("command-line", path, SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("check", search)


def saved_run(options: Namespace) -> tuple[Path, dict[str, Any], list[str]]:
    """The run folder that `resume=` names, and the config and the overrides it was started with.

    Other overrides change values of it (trainer.device, dataset.root, ...); what the run is made of stays.

    Raises ZooError where there is no such run, or for an override that cannot be had.
    """
    if options.multirun:
        raise ZooError("resume goes on with one run: leave out -m")
    values = {item.get_key_element(): item for item in _parse(options.overrides)}
    out = Path(str(values.pop("resume").value())).expanduser()
    if not (out / "config.yaml").is_file():
        raise ZooError(f"there is no run to resume in {out}: give a run folder, the one that holds config.yaml")
    config = OmegaConf.load(out / "config.yaml")
    assert isinstance(config, DictConfig)
    for key, item in values.items():
        if isinstance(OmegaConf.select(config, key), DictConfig):
            raise ZooError(f"resume goes on with the saved {key}: leave out {item.input_line}, or start a new run")
        _check_value(item, config, ())
        OmegaConf.update(config, key, item.value())
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    started = result.read(out).get("overrides", []) if (out / result.FILE).is_file() else []
    return out, {str(key): value for key, value in plain.items()}, started


def explain(error: Exception) -> str:
    """One line for what Hydra says in many."""
    if isinstance(error, ZooError):
        return str(error)
    return f"{_first_line(error)} {_first_line(error.__cause__) if error.__cause__ else ''}".strip()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _parse(texts: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    parser = OverridesParser.create(config_loader=loader)
    overrides = []
    for text in texts:
        try:
            overrides += parser.parse_overrides([text])
        except OverrideParseException as error:
            reason = str(error).strip().splitlines()[-2]  # the last line is a link
            raise ZooError(f"cannot read {text!r}: {reason} (write key=value; odd characters need quotes)") from None
    return overrides


def _check_job(command: str, overrides: Sequence[Override]) -> DictConfig:
    """Compose one job: first its choices alone, which tells the known keys and their kinds, then all of it."""
    loader = GlobalHydra.instance().config_loader()
    groups = [item for item in overrides if loader.get_group_options(item.key_or_group)]
    base = _compose(command, [str(item.input_line) for item in groups])
    for item in overrides:
        if item in groups or item.is_delete():
            continue
        if item.is_add() or item.is_force_add():
            _check_root(item, base, loader.list_groups(""))
        else:
            _check_value(item, base, loader.list_groups(""))
    return hydra.compose(command, [str(item.input_line) for item in overrides])


def _check_complete(command: str, config: DictConfig) -> None:
    """Refuse a job that lacks what only the user can name."""
    loader = GlobalHydra.instance().config_loader()
    for group in ("model", "dataset") if command == "train" else ():
        if group not in config:
            names = ", ".join(loader.get_group_options(group))
            raise ZooError(f"choose a {group}: {group}=NAME with one of {names}")
    missing = OmegaConf.missing_keys(config)
    if command == "evaluate":
        missing = _missing_parts(config, missing)
    for key in sorted(missing):
        raise ZooError(f"{command} needs {key}={EXAMPLES.get(key, '...')}")


def _missing_parts(config: DictConfig, missing: set[str]) -> set[str]:
    """What an evaluation lacks: its checkpoint, or those of the two models that are to be combined."""
    parts = ("semantic", "instance")
    if not config.combined:
        if given := [part for part in parts if config[part] is not None]:
            raise ZooError(f"{given[0]}= goes with model=combined: add it, or name the file checkpoint=")
        return missing
    return missing - {"checkpoint"} | {part for part in parts if config[part] is None}


def _compose(command: str, texts: list[str]) -> DictConfig:
    """`hydra.compose` with backbones that have no card: those that timm knows get one on the way."""
    while True:
        try:
            return hydra.compose(command, texts)
        except MissingConfigException as error:
            group, _, card = (error.missing_cfg_file or "").partition("/")
            if not card:
                raise
            if group != "backbone":
                raise unknown(group, card, error.options or ()) from None
            _add_backbone(card, error.options or ())


def _add_backbone(name: str, cards: Sequence[str]) -> None:
    """Give a timm model a card: the default one under its name.

    Raises ZooError where timm has no such model.
    """
    import timm  # takes seconds, and only this needs it

    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if name not in known:
        raise unknown("backbone", name, {*known, *cards})
    card = {"defaults": ["default", "_self_"], "name": name}
    ConfigStore.instance().store(group="backbone", name=name, node=card)


def _check_value(override: Override, config: DictConfig, groups: Sequence[str]) -> None:
    """Refuse a key that is not in the config, and a value of another kind than the one it replaces."""
    key, value = override.key_or_group, override.value()
    known = dict(_flatten(config))
    if key not in known:
        if key.startswith(tuple(f"{mapping}." for mapping in OPEN)):
            raise ZooError(f"{key} is not set yet: a new key needs a plus, +{override.input_line}")
        raise _unknown_key(key, {*known, *groups}, str(override.input_line))
    old, text = known[key], str(override.input_line).partition("=")[2]
    if isinstance(old, bool) and not isinstance(value, bool | None) and key not in WORDS:
        raise ZooError(f"{key} takes true or false, not {text}")
    if isinstance(old, int | float) and not isinstance(old, bool) and isinstance(value, bool | str | QuotedString):
        raise ZooError(f"{key} takes a number, not {text}")


def _check_root(override: Override, config: DictConfig, groups: Sequence[str]) -> None:
    """Refuse an added key (+key=value) that begins with no part of the config: nothing would ever read it."""
    key = override.key_or_group
    roots = {*map(str, config), *groups}
    root = key.partition(".")[0].partition("/")[0]
    if root in roots:
        return
    if get_close_matches(root, roots, cutoff=0.5):
        raise unknown("option", root, roots)
    raise _unknown_key(key, {name for name, _ in _flatten(config)} | roots, str(override.input_line))


def _unknown_key(key: str, known: set[str], line: str) -> ZooError:
    """Names the keys whose last part is nearly that of `key`, wherever they stand, or else the neighbours.

    A card that takes further options is asked for its own keys alone: optimizer.eps is no trainer.steps. Without one
    nearly alike it is told how to pass the option.
    """
    parent, _, leaf = key.rpartition(".")
    open_card = key.partition(".")[0] in FURTHER and "." in key
    alike = sorted(name for name in known if get_close_matches(leaf, [name.rpartition(".")[2]], cutoff=0.75))
    if open_card:
        alike = [name for name in alike if name.rpartition(".")[0] == parent or name.endswith(f".{leaf}")]
    if alike:
        return ZooError(f"unknown option {key!r}: did you mean {' or '.join(alike[:3])}?")
    if open_card:
        return ZooError(f"{key} is no key of the card: an option of timm needs a plus, +{line.lstrip('+')}")
    while parent and not any(name.startswith(f"{parent}.") for name in known):
        parent = parent.rpartition(".")[0]
    return unknown("option", key, [name for name in known if name.rpartition(".")[0] == parent])


def _flatten(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config with dots, those of inner nodes too, and its value (None where it is missing)."""
    for key in map(str, config):
        value = None if OmegaConf.is_missing(config, key) else config[key]
        yield f"{prefix}{key}", value
        if isinstance(value, DictConfig):
            yield from _flatten(value, f"{prefix}{key}.")
