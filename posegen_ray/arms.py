"""The arms of a comparison: what the estimator is fine-tuned on beside the source images.

All arms share their source half, the number of images (two controls have more) and the recipe; they
differ in where the other half comes from. A variant is PoseGen with other settings: the rows of an
ablation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posegen_ray.compose import change_config
from posegen_ray.config import RunConfig

BASELINE = "baseline"
POSEGEN = "posegen"

# where an arm's own images come from
SOURCE = "source"  # real poses of the source clips, eye level
RANDOM = "random"  # recombined and perturbed real poses, any camera of the range
REAL = "real"  # real poses, any camera of the range
MINED = "mined"  # the hardest of many random ones
GENERATED = "generated"  # a trained generator

_KINDS = {
    "source_adapted": SOURCE,
    "random": RANDOM,
    "random_double": RANDOM,
    "random_more": RANDOM,
    "real_poses": REAL,
    "hard_mined": MINED,
}
# nobody is attacked: no estimator is prepared or updated for it
_NO_FEEDBACK = ("feedback.weight=0", "training.estimator_steps=0", "training.attack=pretrained")


@dataclass(frozen=True)
class Arm:
    """One fine-tuned arm."""

    name: str
    kind: str  # SOURCE | RANDOM | REAL | MINED | GENERATED
    config: RunConfig  # the run's; a variant's has its own settings of the generator
    more: int = 0  # images beyond those of the other arms


def fine_tuned_arms(config: RunConfig) -> list[Arm]:
    """The arms that are fine-tuned, in the order of experiment.arms. Composes their settings, a
    tenth of a second a variant: a run does so once.

    Raises:
        ConfigError: a variant's settings are wrong.
    """
    return [_arm(config, name) for name in config.experiment.arms if name != BASELINE]


def arm_named(arms: Sequence[Arm], name: str) -> Arm | None:
    """One of `fine_tuned_arms`; None: there is no such arm."""
    return next((arm for arm in arms if arm.name == name), None)


def trained_arms(arms: Sequence[Arm]) -> list[Arm]:
    """Those whose generator has to be trained first."""
    return [arm for arm in arms if arm.kind == GENERATED]


def own_images(config: RunConfig) -> int:
    """How many images are an arm's own; the other half is shared."""
    return config.experiment.images_per_arm - config.experiment.images_per_arm // 2


def rendered_for_feedback(config: RunConfig) -> int:
    """Proposals of a PoseGen training, of all its workers: so many pictures are rendered, less the
    invalid ones."""
    training = config.training
    proposals = training.rounds * training.steps_per_round * training.batch_size
    return proposals * config.runtime.trainers


def draws_at_random_like(arm: Arm, config: RunConfig) -> bool:
    """Whether the random part of a generator's images is the same as with the run's settings."""

    def decides(settings: RunConfig) -> list[object]:
        names = ("camera", "light", "condition", "recombine", "tumble", "share")
        generator = [getattr(settings.generator, name) for name in names]
        return [settings.subject, settings.validity, settings.training.plain_backgrounds, generator]

    return decides(arm.config) == decides(config)


def _arm(config: RunConfig, name: str) -> Arm:
    if name in _KINDS:
        more = {
            "random_double": own_images(config),
            "random_more": rendered_for_feedback(config),
        }
        return Arm(name, _KINDS[name], config, more.get(name, 0))
    if name == POSEGEN:
        return Arm(name, GENERATED, config)
    overrides: Sequence[str] = config.experiment.variants.get(name, _NO_FEEDBACK)
    return Arm(name, GENERATED, change_config(config, overrides))
