"""Estimators by name."""

from __future__ import annotations

from collections.abc import Callable

from posegen_ray.config import EstimatorConfig
from posegen_ray.errors import ConfigError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.estimators.blazepose import load_blazepose

_BUILDERS: dict[str, Callable[[EstimatorConfig], PoseEstimator]] = {
    "blazepose": lambda config: load_blazepose(config.variant),
}


def load_estimator(config: EstimatorConfig) -> PoseEstimator:
    """The pre-trained estimator that the configuration names; its parameters are frozen.

    Raises:
        ConfigError: there is no such kind.
        AssetError: its file cannot be fetched.
    """
    if config.kind not in _BUILDERS:
        raise ConfigError(
            f"estimator.kind={config.kind!r} is not an estimator.",
            f"Choose one of: {', '.join(_BUILDERS)}.",
        )
    return _BUILDERS[config.kind](config)
