"""The phases of a comparison: people, test sets, training, arms. Each is done once and kept.

What a phase leaves is kept in the run folder at once, so that a run that was interrupted goes on
where it stopped and ends with the same numbers. The same for every runtime.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from posegen_ray.arm_images import REFERENCE_HALF, SOURCE_HALF, ArmImages
from posegen_ray.arms import (
    POSEGEN,
    Arm,
    fine_tuned_arms,
    trained_arms,
)
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.datasets.kept import KeptSamples
from posegen_ray.drawing import Drawing, Seeds
from posegen_ray.errors import (
    CheckpointError,
)
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.evaluation.protocol import TEST_SETS
from posegen_ray.evaluation.store import RenderSpeed
from posegen_ray.jobs import (
    FineTune,
    KeepSourceFeatures,
    KeepTestFeatures,
    Tests,
    render_speed,
)
from posegen_ray.local import Backend, Shared
from posegen_ray.notes import SampleNotes
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.training import AdversarialTraining, TrainingResult


@dataclass(frozen=True)
class TestSet:
    """All test images, and to which set each belongs."""

    samples: Samples
    sets: tuple[str, ...]
    images: Shared[Tensor]  # the same images, where jobs can read them


class Run:
    """One run: its phases, each done once and kept in the run folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        backend: Backend,
        console: Console,
    ) -> None:
        self.config = config
        self.folder = folder
        self.backend = backend
        self.console = console
        self.notes = SampleNotes(folder / "samples")
        self.drawing = Drawing(config, folder, backend, console)
        self.fine_tuned = fine_tuned_arms(config)
        self.images = ArmImages(
            self.fine_tuned,
            self.drawing,
            self.notes,
            self._scratch,
            lambda seed, arm: self.trained(seed, arm).generators,
        )
        with console.phase("setup", "preparing the estimator"):
            self.estimator_name = build_estimator(config.estimator).name

    def root(self, seed: int) -> int:
        """Root of a seed's randomness."""
        return self.config.seed + seed

    def test_set(self) -> TestSet:
        """All test images; the same for every run."""
        experiment = self.config.experiment
        if experiment.judge_on == "validation":
            sources, unseen = experiment.test_source_images, experiment.test_ood_images
            counts = {"val_source": sources, "validation": unseen}
        else:
            counts = {name: getattr(experiment, f"test_{name}_images") for name in TEST_SETS}
        kept = self._scratch / "test"
        if kept.exists():
            samples = KeptSamples(str(kept)).get()
        else:
            with self.console.phase("test_images", f"making {sum(counts.values())} test images"):
                parts = [self.drawing.shoot(name, count) for name, count in counts.items() if count]
            samples = concatenate_samples(parts)
            self.notes.samples("test", samples)
            KeptSamples.write(samples, kept)
        sets = tuple(name for name, count in counts.items() for _ in range(count))
        return TestSet(_by_motion(samples), sets, self.backend.share(samples.images))

    def baseline(self, tests: TestSet) -> Tensor:
        """The starting estimator's answers on the test images."""
        self.drawing.joint_map()  # a phase of its own
        with self.console.phase("evaluate", "testing the starting estimator"):
            return self.drawing.predict(tests.images, len(tests.samples))

    def trainings(self) -> None:
        """Trains the generators of all arms and seeds that need one."""
        for arm in trained_arms(self.fine_tuned):
            for seed in self.config.experiment.seeds:
                self.training(seed, arm)

    def training(self, seed: int, arm: Arm | None = None) -> TrainingResult:
        """Adversarial training of one seed (of PoseGen, or of an arm's variant): done, continued,
        or read back."""
        name, config = (arm.name, arm.config) if arm else (POSEGEN, self.config)
        kept = self._kept(_generator(name), seed)
        if kept.exists():
            return TrainingResult.from_state(load_checkpoint(kept))
        drawer, joint_map = self.drawing.drawer(config), self.drawing.joint_map()
        start = self._attacked(seed, arm)
        reference = None
        if config.feedback.reducible > 0:
            reference = self._prepared("reference", (REFERENCE_HALF,), seed)
        folder = f"seed_{seed}" if name == POSEGEN else f"{name}_seed_{seed}"
        of = "" if name == POSEGEN else f"{name}, "
        text = f"adversarial training, {config.training.rounds} rounds ({of}seed {seed})"
        with self.console.phase("train", text):
            result = self.backend.train(
                lambda stream, advance: AdversarialTraining(
                    config,
                    drawer.folders,
                    drawer.renderer,
                    stream,
                    joint_map,
                    self.root(seed),
                    str((self.folder / "tensorboard" / folder).absolute()),
                    advance,
                    start,
                    reference,
                ),
                drawer,
                self.folder / "training" / folder,
                self.root(seed),
                resume=bool(self.config.resume),
            )
        save_checkpoint(kept, result.state())
        return result

    def _attacked(self, seed: int, arm: Arm | None) -> dict[str, Tensor] | None:
        """Weights of the estimator that a training starts from (training.attack)."""
        attack = (arm.config if arm else self.config).training.attack
        if attack == "source":
            return self._prepared("adapted", (), seed)
        if attack == "random":
            part = self.images.random_part(arm.name if arm else POSEGEN)
            return self._prepared(f"{part}.attacked", (part,), seed)
        return None

    def _prepared(self, name: str, others: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Weights of an estimator that training needs, fine-tuned once on the source half and
        other drawn sets."""
        kept = self._kept(name, seed)
        if not kept.exists():
            self._keep_features([seed])
            with self.console.phase("prepare", f"fine-tuning the {name} estimator (seed {seed})"):
                job = self._fine_tune(others, seed)
                ((weights, _),) = self.backend.run([job], "fine-tuning", "step")
            save_checkpoint(kept, {"weights": weights})
        weights = load_checkpoint(kept)["weights"]
        return dict(weights)

    def _fine_tune(self, others: Sequence[str], seed: int, tests: Tests | None = None) -> FineTune:
        """The job that fine-tunes on the source half and other drawn sets, and tests."""
        kept = [self.images.kept(name, seed) for name in others]
        source = str(self._source_features(seed).absolute()) if self._trains else ""
        return FineTune(self.config, self.drawing.joint_map(), self.root(seed), source, kept, tests)

    def _keep_features(self, seeds: Sequence[int]) -> None:
        """Features of the source halves of some seeds, for all that is fine-tuned on them."""
        missing = [seed for seed in seeds if not self._source_features(seed).exists()]
        if not missing or not self._trains:
            return
        jobs = []
        for seed in missing:
            samples = self.images.kept(SOURCE_HALF, seed)
            folder = str(self._source_features(seed).absolute())
            joints = self.drawing.joint_map()
            jobs.append(KeepSourceFeatures(self.config, joints, self.root(seed), samples, folder))
        with self.console.phase("features", "computing features of the source images"):
            self.backend.run(jobs, "features", "step")

    def _tests(self, tests: TestSet) -> Tests:
        """The test images for fine-tuned estimators, their features computed once."""
        folder = self._scratch / "test_features"
        if not folder.exists():
            job = KeepTestFeatures(self.config, tests.images, str(folder.absolute()))
            with self.console.phase("features", "computing features of the test images"):
                self.backend.run([job], "features", "set")
        return Tests(tests.images, str(folder.absolute()))

    @property
    def _trains(self) -> bool:
        """Whether fine-tuning does anything."""
        return any(stage.steps for stage in self.config.finetune.stages)

    def trained(self, seed: int, arm: str = POSEGEN) -> TrainingResult:
        """A finished training's result."""
        kept = self._kept(_generator(arm), seed)
        if not kept.exists():
            raise CheckpointError(
                f"{self.folder} holds no trained generator for seed {seed}.",
                f"Finish the run first: posegen train resume={self.folder}.",
            )
        return TrainingResult.from_state(load_checkpoint(kept))

    def draw_arms(self) -> None:
        """The training images of all arms that are not fine-tuned yet, kept on disk until then."""
        missing = self._missing()
        for seed in self.config.experiment.seeds:
            names = [arm for arm, of in missing if of == seed]
            wanted = [name for name in (SOURCE_HALF, *names) if not self.images.has(name, seed)]
            if names and wanted:
                self.drawing.drawer()
                with self.console.phase("draw", f"drawing training images (seed {seed})"):
                    for name in wanted:
                        self.images.kept(name, seed)

    def arms(self, tests: TestSet) -> dict[str, list[Tensor]]:
        """Every fine-tuned arm's answers on the test images, one tensor a seed.

        All that are missing go into one queue; each is kept as soon as it is there.
        """
        missing = self._missing()
        if missing:
            self._keep_features(sorted({seed for _, seed in missing}))
            images = self._tests(tests)
            jobs = [self._fine_tune((arm,), seed, images) for arm, seed in missing]

            def keep(number: int, result: tuple[dict[str, Tensor], Tensor]) -> None:
                weights, answers = result
                save_checkpoint(
                    self._kept(*missing[number]), {"weights": weights, "answers": answers}
                )
                self.images.remove(*missing[number])

            with self.console.phase("finetune", f"fine-tuning {len(jobs)} arms"):
                self.backend.run(jobs, "fine-tuning", "step", keep)
        return {
            arm.name: [
                load_checkpoint(self._kept(arm.name, seed))["answers"]
                for seed in self.config.experiment.seeds
            ]
            for arm in self.fine_tuned
        }

    def _missing(self) -> list[tuple[str, int]]:
        """Arms (and their seeds) that are not fine-tuned yet."""
        return [
            (arm.name, seed)
            for seed in self.config.experiment.seeds
            for arm in self.fine_tuned
            if not self._kept(arm.name, seed).exists()
        ]

    def answer_again(self, arm: str, seed: int, tests: TestSet) -> Tensor:
        """A fine-tuned arm's answers, from its weights."""
        from posegen_ray.estimators.base import predict

        estimator = build_estimator(self.config.estimator)
        estimator.load_state_dict(load_checkpoint(self._kept(arm, seed))["weights"])
        estimator.to(self.config.runtime.device)
        with self.console.phase("evaluate", f"testing {arm} (seed {seed})"):
            return predict(estimator, tests.samples.images)

    def speed(self) -> RenderSpeed:
        """Measured through the run's own renderer, once."""
        kept = self._scratch / "speed"
        if not kept.exists():
            drawer = self.drawing.drawer()
            with self.console.phase("render_speed", "measuring the renderer"):
                alone, with_gradient = render_speed(drawer)
            save_checkpoint(kept, {"alone": alone, "with_gradient": with_gradient})
        state = load_checkpoint(kept)
        return RenderSpeed(state["alone"], state["with_gradient"])

    def gallery(self) -> Tensor | None:
        """Some of the images that the first seed's last generator makes."""
        if POSEGEN not in self.config.experiment.arms:
            return None
        kept = self._scratch / "gallery"
        if not kept.exists():
            states = self.trained(self.config.experiment.seeds[0]).generators[-1:]
            count = self.config.evaluation.generated
            samples, _ = self.drawing.draw("generated", count, Seeds(0, "gallery"), states)
            KeptSamples.write(samples, kept)
        return KeptSamples(str(kept)).get().images

    def tidy(self) -> None:
        """Removes what only an unfinished run needs."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _kept(self, name: str, seed: int) -> Path:
        return self.folder / "checkpoint" / f"{name}-{seed}"

    @property
    def _scratch(self) -> Path:
        return self.folder / "drawn"

    def _source_features(self, seed: int) -> Path:
        return self._scratch / f"source_features-{seed}"


def _generator(arm: str) -> str:
    """What the checkpoint of an arm's generators is called."""
    return "generator" if arm == POSEGEN else f"{arm}.generator"


def _by_motion(samples: Samples) -> Samples:
    """Samples whose clip names have lost their frame numbers: what intervals cluster by."""
    return replace(samples, clips=tuple(clip.split(":")[0] for clip in samples.clips))
