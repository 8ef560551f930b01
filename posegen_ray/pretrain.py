"""Pre-training of the compact HMR: a second estimator, weak where the source clips show nothing.

The paper's situation in small: an estimator that has seen everyday poses at eye level and nothing
else. It starts from ImageNet weights and learns from images of the training people alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import roma
import torch
from torch import Tensor

from posegen_ray.assets import cache_folder
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import COMPACT, RunConfig
from posegen_ray.console import Console
from posegen_ray.datasets.kept import KeptSamples
from posegen_ray.drawing import Drawing, Seeds
from posegen_ray.errors import ConfigError
from posegen_ray.estimators.augment import labels_of
from posegen_ray.estimators.base import predict
from posegen_ray.estimators.finetune import finetune
from posegen_ray.estimators.progress import FineTuneSteps, finetune_size
from posegen_ray.evaluation.metrics import mpjpe, pa_mpjpe
from posegen_ray.local import Backend
from posegen_ray.photographs import check_photographs
from posegen_ray.records import Samples
from posegen_ray.studio import studio_of
from posegen_ray.training import Advance


def run_pretraining(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Draws source images, trains on them, judges on validation people, and writes the estimator.

    Images that are drawn already are not drawn again, and weights that are trained are kept.

    Returns:
        The line to print.

    Raises:
        ConfigError: another estimator is named.
    """
    from posegen_ray.estimators.compact_hmr import FORMAT

    check_pretraining(config)
    drawing = Drawing(config, folder, backend, console)
    settings = config.pretrain
    trained = folder / "checkpoint" / "pretrained"
    if not trained.exists():
        kept = folder / "drawn" / "pretrain"
        if not kept.exists():
            drawing.drawer()
            with console.phase("draw", f"drawing {settings.images} source images"):
                samples, _ = drawing.draw("source", settings.images, Seeds(config.seed, "pretrain"))
            KeptSamples.write(samples, kept)
        backend.release_renderer()
        job = Pretrain(config, KeptSamples(str(kept.absolute())), config.seed)
        with console.phase("pretrain", "training"):
            ((weights, training_mm),) = backend.run([job], "training", "step")
        save_checkpoint(trained, {"weights": weights, "training_mm": training_mm})
    state = load_checkpoint(trained)
    weights, training_mm = state["weights"], state["training_mm"]
    figures = {"training_mpjpe_mm": training_mm}
    with console.phase("evaluate", "testing on validation people"):
        for name in ("val_source", "validation"):
            tests = drawing.shoot(name, settings.validation_images)
            figures |= _figures(name, weights, tests)
    about = {
        "kind": COMPACT,
        "images": settings.images,
        "clips": list(config.motion.source),
        "subjects": [name for name, _ in drawing.subjects()],
        "photographs": list(config.photographs.labels),
        "body": config.body.name,
        "seed": config.seed,
        "licence": "weights: as the images they were trained on; backbone Apache-2.0",
        "recipe": asdict(settings.finetune),
        "figures": figures,
    }
    out = Path(config.out) if config.out else cache_folder() / COMPACT
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, {"format": FORMAT, "weights": weights, "about": about})
    shutil.rmtree(folder / "drawn", ignore_errors=True)
    return (
        f"{out}: MPJPE {figures['training_mpjpe_mm']:.0f} mm on training images, "
        f"{figures['val_source_mpjpe_mm']:.0f} mm on source poses of other people, "
        f"{figures['validation_mpjpe_mm']:.0f} mm on unseen clips"
    )


def check_pretraining(config: RunConfig) -> None:
    """Raises ConfigError unless the estimator is one that is pre-trained here, and as
    `check_photographs`."""
    if config.estimator.kind != COMPACT:
        raise ConfigError(
            f"estimator={config.estimator.kind} is not pre-trained here: it comes as it is.",
            f"Use estimator={COMPACT}, the default of `posegen pretrain`.",
        )
    check_photographs(config, config.pretrain.finetune.losses)


@dataclass(frozen=True)
class Pretrain:
    """Trains a compact HMR, from ImageNet weights, on source images."""

    config: RunConfig
    samples: KeptSamples
    seed: int

    @property
    def size(self) -> int:
        settings = self.config.pretrain
        return finetune_size(settings.finetune, settings.images)

    def run(self, advance: Advance) -> tuple[dict[str, Tensor], float]:
        """The weights, and the MPJPE on (some of) the training images, mm."""
        from posegen_ray.estimators.compact_hmr import CompactHMR, load_imagenet

        samples = self.samples.get()
        rendered = samples.rendered()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            estimator = CompactHMR(
                mean_rest_joints(self.config, rendered), mean_pose(labels_of(rendered).rotations)
            )
        load_imagenet(estimator)
        estimator.eval()
        settings = self.config.pretrain.finetune
        steps = FineTuneSteps(advance, settings, self.config.pretrain.images)
        tuned = finetune(
            estimator,
            samples,
            settings,
            self.seed,
            steps,
            source=len(samples),
            body=self.config.body.name,
        )
        steps.finish()
        some = rendered[: min(len(rendered), 240)]
        error = float(mpjpe(predict(tuned, some.images), some.joints).mean())
        return {name: value.cpu() for name, value in tuned.state_dict().items()}, error


def mean_rest_joints(config: RunConfig, samples: Samples) -> Tensor:  # [24, 3] metres
    """The T-pose's joints of the mean of the people that the samples show."""
    body = studio_of(config, ()).body
    with torch.no_grad():
        joints = body.rest_joints(samples.shape.mean(0, keepdim=True))[0]
    return joints - joints[:1]


def mean_pose(
    rotations: Tensor,  # [N, 24, 3, 3]
) -> Tensor:  # [24, 3, 3]
    """The rotation nearest to the mean of each joint's."""
    mean: Tensor = roma.special_procrustes(rotations.mean(0))
    return mean


def _figures(name: str, weights: Mapping[str, Tensor], tests: Samples) -> dict[str, float]:
    from posegen_ray.estimators.compact_hmr import CompactHMR

    estimator = CompactHMR()
    estimator.load_state_dict(weights)
    answers = predict(estimator.eval(), tests.images)
    return {
        f"{name}_mpjpe_mm": float(mpjpe(answers, tests.joints).mean()),
        f"{name}_pa_mpjpe_mm": float(pa_mpjpe(answers, tests.joints).mean()),
    }
