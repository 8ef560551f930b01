"""Settings of sweeps: what is searched, how, and when a trial may be stopped (conf/tune).

The search space is data: dotted names of other settings with their bounds. Everything about it is
checked while the configuration is composed.
"""

from __future__ import annotations

import difflib
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from posegen_ray.config.rules import require
from posegen_ray.errors import ConfigError

Config = TypeVar("Config")

# sections that nothing but adversarial training reads: people, joint map and validation images are
# made once for all trials
SEARCHABLE = ("generator", "discriminator", "feedback")
KINDS = ("uniform", "loguniform", "choice")


@dataclass
class ParameterConfig:
    """One setting that is searched: between `low` and `high`, or among `choices`."""

    name: str = ""  # dotted, for example feedback.weight
    kind: str = "uniform"  # uniform | loguniform | choice
    low: float = 0.0
    high: float = 0.0
    choices: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(
            self.kind in KINDS,
            f"tune.space: {self.name or 'a parameter'} has kind={self.kind!r}.",
            f"Choose one of {', '.join(KINDS)}.",
        )
        if self.kind == "choice":
            require(
                len(self.choices) > 1 and len({repr(c) for c in self.choices}) == len(self.choices),
                f"tune.space: {self.name} needs at least two different choices, "
                f"not {list(self.choices)}.",
                "For example {name: generator.layers, kind: choice, choices: [2, 3, 4]}.",
            )
            return
        require(
            math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high,
            f"tune.space: {self.name} has no values between low={self.low} and high={self.high}.",
            "Set low below high.",
        )
        require(
            self.kind != "loguniform" or self.low > 0,
            f"tune.space: {self.name} is loguniform from low={self.low}, which has no logarithm.",
            "Set low above 0, or use kind: uniform.",
        )

    def extremes(self) -> list[Any]:
        """The values at the ends of what is searched."""
        return list(self.choices) if self.kind == "choice" else [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether the search could come upon this value."""
        if self.kind == "choice":
            return value in self.choices
        return bool(self.low <= value <= self.high)

    def rounded(self, value: Any) -> Any:
        """The value with four significant digits: short enough to be pasted, and what is used."""
        if self.kind == "choice":
            return value
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass
class TuneConfig:
    """A sweep (conf/tune): many trainings with other settings, judged on validation images."""

    search: str = "random"  # random | optuna
    scheduler: str = "fifo"  # fifo: every trial to its end | asha: bad ones are stopped early
    grace_rounds: int = 1  # asha: no trial is stopped before
    reduction_factor: float = 2.0  # asha: one in so many goes on at each rung
    at_once: int = 0  # trials side by side; 0: as many as fit
    # the best trial and the default are trained again with so many new seeds, to tell a gain from
    # luck; 0: no gain is claimed
    confirm_seeds: int = 3
    space: list[ParameterConfig] = field(default_factory=list)  # empty: no sweep is configured

    def __post_init__(self) -> None:
        require(
            self.search in ("random", "optuna"),
            f"tune.search={self.search!r} is not a way to search.",
            "Choose random or optuna.",
        )
        require(
            self.scheduler in ("fifo", "asha"),
            f"tune.scheduler={self.scheduler!r} is not a scheduler.",
            "Choose fifo (every trial to its end) or asha (bad ones are stopped early).",
        )
        require(
            self.grace_rounds >= 1 and self.reduction_factor > 1,
            f"tune.grace_rounds={self.grace_rounds} must be at least 1, and "
            f"tune.reduction_factor={self.reduction_factor} above 1.",
            "The defaults are 1 and 2.",
        )
        require(
            self.at_once >= 0 and self.confirm_seeds >= 0 and self.confirm_seeds != 1,
            f"tune.at_once={self.at_once} must not be negative, nor "
            f"tune.confirm_seeds={self.confirm_seeds}, which must not be 1 either.",
            "One seed cannot tell a gain from luck: use 3, or 0 to leave the confirmation out.",
        )
        names = [parameter.name for parameter in self.space]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(
            not twice, f"tune.space names {', '.join(twice)} twice.", "Name each parameter once."
        )


def setting(config: object, name: str) -> Any:
    """The value of a dotted setting."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with these dotted settings changed, its rules checked again."""
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            changes[first] = value
    for first, below in inner.items():
        changes[first] = with_settings(getattr(config, first), below)
    return replace(config, **changes)  # type: ignore[type-var]


def searchable_settings(config: object) -> dict[str, type]:
    """Names and types of all settings that a sweep may change."""

    def walk(node: object, prefix: str) -> dict[str, type]:
        hints = typing.get_type_hints(type(node))
        found: dict[str, type] = {}
        for entry in fields(node):  # type: ignore[arg-type]
            value, name = getattr(node, entry.name), f"{prefix}.{entry.name}"
            if is_dataclass(value):
                found |= walk(value, name)
            elif hints[entry.name] in (bool, int, float, str):
                found[name] = hints[entry.name]
        return found

    return {
        name: kind
        for section in SEARCHABLE
        for name, kind in walk(getattr(config, section), section).items()
    }


def check_space(config: object, space: Sequence[ParameterConfig]) -> None:
    """Refuses a search space that names unknown settings, or reaches what their rules forbid.

    Rules relate two settings at most, and each holds between its ends, so all pairs of ends are
    tried.

    Args:
        config: the run's configuration, whose settings are the default trial's.
        space: what is searched.
    """
    known = searchable_settings(config)
    for parameter in space:
        _check_name(parameter, known)
        default = setting(config, parameter.name)
        require(
            parameter.holds(default),
            f"tune.space: {parameter.name}={default}, the default, is not among what is searched "
            f"({_range_text(parameter)}), but the default must be one of the trials.",
            "Widen the range, or change the setting itself.",
        )
    for section in SEARCHABLE:
        inside = [parameter for parameter in space if parameter.name.startswith(f"{section}.")]
        for first, second in itertools.combinations_with_replacement(inside, 2):
            for one, other in itertools.product(first.extremes(), second.extremes()):
                _check_reached(config, section, {first.name: one, second.name: other})


def _check_reached(config: object, section: str, values: Mapping[str, Any]) -> None:
    below = {name.removeprefix(f"{section}."): value for name, value in values.items()}
    try:
        with_settings(getattr(config, section), below)
    except ConfigError as error:
        reached = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ConfigError(
            f"tune.space reaches {reached}, which is not allowed: {error.what}",
            f"Narrow its range. {error.fix}",
        ) from error


def _check_name(parameter: ParameterConfig, known: Mapping[str, type]) -> None:
    near = difflib.get_close_matches(parameter.name, known, 3, 0.5)
    require(
        parameter.name in known,
        f"tune.space: {parameter.name!r} is not a setting that can be searched.",
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"Name settings of {', '.join(SEARCHABLE)}: all else is shared by the trials.",
    )
    kind = known[parameter.name]
    if parameter.kind != "choice":
        require(
            kind is float,
            f"tune.space: {parameter.name} is of type {kind.__name__}, so it cannot be "
            f"{parameter.kind}.",
            "Use kind: choice and list the values.",
        )
        return
    for value in parameter.choices:
        fits = type(value) is kind or (kind is float and type(value) is int)
        require(
            fits,
            f"tune.space: {value!r} is no value for {parameter.name}, of type {kind.__name__}.",
            "Check the choice's type and spelling.",
        )


def _range_text(parameter: ParameterConfig) -> str:
    if parameter.kind == "choice":
        return ", ".join(map(str, parameter.choices))
    return f"{parameter.low} to {parameter.high}"
