"""conf/ + command-line overrides -> RunConfig. The only module that knows Hydra and OmegaConf."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import posegen_ray
from posegen_ray.config import RunConfig
from posegen_ray.errors import ConfigError
from posegen_ray.files import write_text

logger = logging.getLogger(__name__)
_NESTED_DICTS = ("experiment.variants", "feedback.joint_weights")  # their entries may be new
_DICTS = {field.name for field in fields(RunConfig) if str(field.type).startswith("dict[")}


def conf_folder() -> Path:
    """conf/ beside the package in a checkout, inside the package in an installed wheel."""
    package = Path(posegen_ray.__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(
        f"The configuration folder conf/ is missing beside {package}.",
        "Install the package again, or run from a complete checkout.",
    )


def compose_config(overrides: Sequence[str] = ()) -> RunConfig:
    """Composes and checks a run's configuration.

    Raises:
        ConfigError: an unknown key or choice, a wrong type, a value out of range, or fields that
            contradict each other.
    """
    ConfigStore.instance().store(name="schema", node=RunConfig)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = compose("config", overrides=[_may_be_new(o) for o in overrides])
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error
        while isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
            cause = cause.__cause__
        _raise_clear(cause, overrides)
    assert isinstance(config, RunConfig)
    return config


def _may_be_new(override: str) -> str:
    """Entries of a dict (checkpoints.spin=…) need not be there already, as Hydra has it."""
    key = override.split("=")[0]
    return f"++{override}" if _in_dict(key) else override


def _in_dict(key: str) -> bool:
    nested = any(key == name or key.startswith(f"{name}.") for name in _NESTED_DICTS)
    return key.split(".")[0] in _DICTS or nested


def change_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same configuration with other values: key=value, as on the command line.

    Raises:
        ConfigError: as `compose_config`.
    """
    try:
        wanted = OmegaConf.from_dotlist(list(overrides))
        changed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), wanted))
    except OmegaConfBaseException as error:
        _raise_clear(error, overrides)
    assert isinstance(changed, RunConfig)
    return changed


def dump_config(config: RunConfig, path: Path) -> None:
    """Writes the whole configuration as YAML, so that a run folder explains itself."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(path: Path) -> RunConfig:
    """The configuration that `dump_config` wrote."""
    try:
        loaded = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(loaded)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{path} is not the configuration of a run: {_first_line(error)}",
            "Name a run folder that `posegen train` or `posegen demo` made.",
        ) from error
    assert isinstance(config, RunConfig)
    return config


def known_keys() -> list[str]:
    """Every key that an override may set, dotted."""

    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix, *(key for name in node for key in walk(node[name], f"{prefix}.{name}"))]

    container = OmegaConf.to_container(OmegaConf.structured(RunConfig))
    assert isinstance(container, dict)
    return [key for name in container for key in walk(container[name], str(name))]


def _raise_clear(error: Exception, overrides: Sequence[str]) -> None:
    text = str(error)
    choices = re.search(r"Could not find '([^']+)'", text)
    if choices:
        raise ConfigError(
            f"There is no configuration {choices.group(1)}.",
            "`posegen doctor` lists the groups under conf/ and their choices.",
        ) from error
    known = known_keys()
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if _in_dict(key):
            continue
        if key not in known and not (conf_folder() / key).is_dir():
            near = difflib.get_close_matches(key, known, 3, 0.5)
            hint = (
                f"Did you mean {' or '.join(near)}?"
                if near
                else "posegen_ray/config/ has all keys."
            )
            raise ConfigError(f"Unknown setting {key!r}.", hint) from error
    place = getattr(error, "full_key", None)
    where = f" (at {place})" if place else ""
    raise ConfigError(f"{_first_line(error)}{where}", "Check the value's type and spelling.") from (
        error
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
