"""Estimators by name."""

from __future__ import annotations

from collections.abc import Callable

from posegen_ray.config import EstimatorConfig
from posegen_ray.errors import ConfigError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.estimators.blazepose import BlazePose, load_blazepose
from posegen_ray.estimators.crop import CropSpec

_BUILDERS: dict[str, Callable[[EstimatorConfig], PoseEstimator]] = {
    "blazepose": lambda config: load_blazepose(config.variant),
}

_CROPS: dict[str, CropSpec] = {"blazepose": BlazePose.crop}


def load_estimator(config: EstimatorConfig) -> PoseEstimator:
    """The pre-trained estimator that the configuration names; its parameters are frozen.

    Raises:
        ConfigError: there is no such kind.
        AssetError: its file cannot be fetched.
    """
    _check(config)
    return _BUILDERS[config.kind](config)


def crop_spec(config: EstimatorConfig) -> CropSpec:
    """The crop that the estimator wants, without loading it."""
    _check(config)
    return _CROPS[config.kind]


def _check(config: EstimatorConfig) -> None:
    if config.kind not in _BUILDERS:
        raise ConfigError(
            f"estimator.kind={config.kind!r} is not an estimator.",
            f"Choose one of: {', '.join(_BUILDERS)}.",
        )
