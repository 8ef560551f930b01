"""A user's own estimator: a class that derives from `PoseEstimator`, named as module:Class."""

from __future__ import annotations

from pathlib import Path

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import FineTuneConfig
from posegen_ray.errors import CheckpointError, ConfigError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.target import import_target


def find_estimator(target: str) -> type[PoseEstimator]:
    """The class that `target` (module:Class) names, with all that is asked of it.

    Raises:
        ConfigError: it cannot be imported, is no `PoseEstimator`, or lacks a part.
    """
    found = import_target(target, "MyEstimator")
    if not (isinstance(found, type) and issubclass(found, PoseEstimator)):
        raise ConfigError(
            f"estimator.target={target!r} is not a class that derives from PoseEstimator.",
            "Derive it from posegen_ray.estimators.PoseEstimator (docs/estimators.md), or, for a "
            "function of which only the answers are known, use estimator=black_box.",
        )
    if not isinstance(getattr(found, "crop", None), CropSpec):
        raise ConfigError(
            f"{target} does not say which crop of a picture it wants to see.",
            "Write crop = CropSpec(size=…, kind=…, scale=…) into the class (docs/estimators.md).",
        )
    joint_names = getattr(found, "joint_names", ())
    missing = [name for name in LIMB_JOINT_NAMES if name not in joint_names]
    if missing:
        raise ConfigError(
            f"joint_names of {target} lacks {', '.join(missing)}.",
            f"Training and its tests need {', '.join(LIMB_JOINT_NAMES)}.",
        )
    if getattr(found, "__abstractmethods__", None):
        raise ConfigError(
            f"{target} lacks {', '.join(sorted(found.__abstractmethods__))}.",
            "Write forward(images) -> Estimate (docs/estimators.md).",
        )
    return found


def check_cuts(target: str, settings: FineTuneConfig) -> None:
    """Whether the class can be fine-tuned from the cuts that the settings name.

    Raises:
        ConfigError: as `find_estimator`; also for a cut that it does not have.
    """
    cuts = find_estimator(target).cuts
    stages = {f"finetune.stages[{i}].cut": stage.cut for i, stage in enumerate(settings.stages)}
    for key, cut in {**stages, "finetune.online_cut": settings.online_cut}.items():
        if cut not in cuts:
            raise ConfigError(
                f"{key}={cut}: {target} has no such cut.",
                f"It has {', '.join(cuts)}; docs/estimators.md says how to give it others.",
            )


def load_custom(target: str, checkpoint: str | Path | None = None) -> PoseEstimator:
    """An instance of the user's class, for evaluation; its parameters are frozen.

    Args:
        checkpoint: handed to the class, if there is one: `Class(checkpoint)`, else `Class()`.

    Raises:
        ConfigError: as `find_estimator`.
        CheckpointError: the file is not there.
    """
    found = find_estimator(target)
    if checkpoint is not None and not Path(checkpoint).exists():
        raise CheckpointError(
            f"The checkpoint of {target}, {str(checkpoint)!r}, does not exist.",
            "Set estimator.checkpoint to what the class is to load, or leave it out.",
        )
    estimator = found() if checkpoint is None else found(checkpoint)  # type: ignore[call-arg]
    if not hasattr(estimator, "name"):
        estimator.name = target.partition(":")[2]
    return estimator.eval().requires_grad_(False)
