"""The phases of a comparison: people, test sets, training, arms. Each is done once and kept.

What a phase leaves is kept in the run folder at once, so that a run that was interrupted goes on
where it stopped and ends with the same numbers. The same for every runtime.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.arms import (
    GENERATED,
    MINED,
    POSEGEN,
    RANDOM,
    Arm,
    arm_named,
    fine_tuned_arms,
    rendered_for_feedback,
    trained_arms,
)
from posegen_ray.body import load_body
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.datasets.kept import KeptSamples
from posegen_ray.errors import (
    CheckpointError,
    SubjectError,
)
from posegen_ray.estimators.blazepose import BlazePose, fit_joint_map
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.evaluation.protocol import TEST_SETS
from posegen_ray.evaluation.store import RenderSpeed
from posegen_ray.generation import losses
from posegen_ray.jobs import (
    PREDICT_BLOCK,
    Draw,
    FineTune,
    FitPerson,
    KeepSourceFeatures,
    KeepTestFeatures,
    Predict,
    Shoot,
    Tests,
    render_speed,
    subjects_root,
    training_people,
)
from posegen_ray.local import Backend, Shared
from posegen_ray.motion.splits import load_splits
from posegen_ray.notes import SampleNotes
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.seeding import derive_seed
from posegen_ray.studio import Counts, Drawer, Folders, TestShoot
from posegen_ray.subjects import makehuman
from posegen_ray.subjects.store import list_subjects, read_manifest
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
        pretrained: bool = True,
    ) -> None:
        """`pretrained`: there is an estimator; `posegen pretrain` makes it first."""
        self.config = config
        self.folder = folder
        self.backend = backend
        self.console = console
        self.notes = SampleNotes(folder / "samples")
        with console.phase("setup", "preparing body, clips and estimator"):
            # fetched and built here once, before many processes want them at the same time
            load_body(config.body, lambda text: console.say(f"  {text}"))
            load_splits(config.motion)
            if config.subject.source == "makehuman" or config.experiment.test_person_images:
                makehuman.prepare(lambda text: console.say(f"  {text}"))
            self.estimator_name = build_estimator(config.estimator).name if pretrained else ""
        self._folders: Folders = ()
        self._joint_map: Tensor | None = None

    def root(self, seed: int) -> int:
        """Root of a seed's randomness."""
        return self.config.seed + seed

    def subjects(self) -> Folders:
        """The training subjects; synthetic people are fitted when they are missing."""
        if self._folders:
            return self._folders
        settings = self.config.subject
        if settings.source == "folder":
            root = subjects_root(self.config)
            there = list_subjects(root)
            missing = [name for name in settings.names if name not in there]
            if missing:
                raise SubjectError(
                    f"There is no subject {missing[0]!r} in {root}.",
                    f"It holds {', '.join(there) or 'none'}; make one with `posegen fit`.",
                )
            self._folders = tuple((name, str(root / name)) for name in settings.names)
            return self._folders
        known = training_people(self.config)
        unknown = [name for name in settings.names if name not in known]
        if unknown:
            raise SubjectError(
                f"{unknown[0]!r} is not one of the training people of subject={settings.source}.",
                f"They are {', '.join(known)}.",
            )
        jobs = [FitPerson(self.config, name) for name in settings.names or known]
        missing_jobs = [job for job in jobs if not job.done]
        if missing_jobs:
            with self.console.phase("fit", f"fitting {len(missing_jobs)} people"):
                self.backend.run(missing_jobs, "fitting", "step")
            for job in missing_jobs:
                self.console.say(f"  {job.name}: {read_manifest(job.folder).quality}")
        self._folders = tuple((job.name, str(job.folder.absolute())) for job in jobs)
        return self._folders

    def drawer(self, config: RunConfig | None = None) -> Drawer:
        """Draws training images of the subjects, by the settings of an arm (or the run's)."""
        everybody = self.subjects()
        config = config or self.config
        names = config.subject.names
        folders = tuple(one for one in everybody if not names or one[0] in names)
        return Drawer(config, folders, self.backend.renderer(everybody))

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
                parts = [self.shoot(name, count) for name, count in counts.items() if count]
            samples = concatenate_samples(parts)
            self.notes.samples("test", samples)
            KeptSamples.write(samples, kept)
        sets = tuple(name for name, count in counts.items() for _ in range(count))
        return TestSet(_by_motion(samples), sets, self.backend.share(samples.images))

    def shoot(self, name: str, count: int) -> Samples:
        """The first `count` images of a set of `TestShoot`."""
        shoot = TestShoot(self.config, name)
        parts: list[Samples] = []
        first = 0
        while (have := sum(map(len, parts))) < count:
            missing = count - have
            seeds = shoot.seeds(first + missing)[first:]
            first += missing
            jobs = [Shoot(shoot, block) for block in _blocks(seeds, self._block)]
            parts += self.backend.run(jobs, f"{name} test images", "img")
        return concatenate_samples(parts)

    def draw(
        self,
        kind: str,
        count: int,
        seeds: Seeds,
        states: Sequence[dict[str, Tensor]] = (),
        config: RunConfig | None = None,
    ) -> tuple[Samples, Counts]:
        """Exactly `count` valid training images, by the settings of an arm (or the run's)."""
        parts: list[Samples] = []
        counts: Counter[str] = Counter()
        drawer = self.drawer(config)
        while (have := sum(map(len, parts))) < count:
            blocks = _blocks(seeds.take(count - have), self._block)
            jobs = [Draw(drawer, kind, block, states) for block in blocks]
            for samples, more in self.backend.run(jobs, f"{kind} images", "img"):
                parts.append(samples)
                counts.update(more)
        return concatenate_samples(parts), dict(counts)

    def joint_map(self) -> Tensor | None:
        """From the estimator's own joints to the skeleton's, fitted on source data, once."""
        if self._joint_map is not None:
            return self._joint_map
        estimator = build_estimator(self.config.estimator)
        if not isinstance(estimator, BlazePose):
            return None
        kept = self.folder / "checkpoint" / "joint_map"
        if kept.exists():
            self._joint_map = load_checkpoint(kept)["matrix"]
            return self._joint_map
        count = self.config.experiment.joint_map_images
        self.drawer()
        with self.console.phase("joint_map", "fitting the joint map on source images"):
            samples, _ = self.draw("source", count, Seeds(0, "joint map"))
            with torch.no_grad():
                landmarks = [estimator.landmarks(x.float() / 255) for x in samples.images.split(16)]
            self._joint_map = fit_joint_map(torch.cat(landmarks), samples.joints)
        save_checkpoint(kept, {"matrix": self._joint_map})
        return self._joint_map

    def baseline(self, tests: TestSet) -> Tensor:
        """The starting estimator's answers on the test images."""
        joint_map = self.joint_map()
        with self.console.phase("evaluate", "testing the starting estimator"):
            return self._predict(tests.images, len(tests.samples), joint_map)

    def _predict(self, images: Shared[Tensor], count: int, joint_map: Tensor | None) -> Tensor:
        """The starting estimator's answers [count, 12, 3] on `count` images."""
        jobs = [
            Predict(self.config, joint_map, images, range(first, min(first + PREDICT_BLOCK, count)))
            for first in range(0, count, PREDICT_BLOCK)
        ]
        return torch.cat(self.backend.run(jobs, "testing", "img"))

    def trainings(self) -> None:
        """Trains the generators of all arms and seeds that need one."""
        for arm in trained_arms(self.config):
            for seed in self.config.experiment.seeds:
                self.training(seed, arm)

    def training(self, seed: int, arm: Arm | None = None) -> TrainingResult:
        """Adversarial training of one seed (of PoseGen, or of an arm's variant): done, continued,
        or read back."""
        name, config = (arm.name, arm.config) if arm else (POSEGEN, self.config)
        kept = self._kept(_generator(name), seed)
        if kept.exists():
            return TrainingResult.from_state(load_checkpoint(kept))
        drawer, joint_map = self.drawer(config), self.joint_map()
        start = self._attacked(seed, arm)
        reference = None
        if config.feedback.reducible > 0:
            reference = self._prepared("reference", ("reference_half",), seed)
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
            name = arm.name if arm else POSEGEN
            return self._prepared(f"{name}.attacked", (f"{name}_random",), seed)
        return None

    def _prepared(self, name: str, others: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Weights of an estimator that training needs, fine-tuned once on the source half and
        other drawn sets."""
        kept = self._kept(name, seed)
        if not kept.exists():
            self._keep_features([seed])
            with self.console.phase("prepare", f"fine-tuning the {name} estimator (seed {seed})"):
                for other in others:
                    if not self._drawn(other, seed).exists():
                        self._draw_set(other, seed)
                job = self._fine_tune(others, seed)
                ((weights, _),) = self.backend.run([job], "fine-tuning", "step")
            save_checkpoint(kept, {"weights": weights})
        weights = load_checkpoint(kept)["weights"]
        return dict(weights)

    def _fine_tune(self, others: Sequence[str], seed: int, tests: Tests | None = None) -> FineTune:
        """The job that fine-tunes on the source half and other drawn sets, and tests."""
        kept = [KeptSamples(str(self._drawn(name, seed).absolute())) for name in others]
        source = str(self._source_features(seed).absolute()) if self._trains else ""
        return FineTune(self.config, self.joint_map(), self.root(seed), source, kept, tests)

    def _keep_features(self, seeds: Sequence[int]) -> None:
        """Features of the source halves of some seeds, for all that is fine-tuned on them."""
        missing = [seed for seed in seeds if not self._source_features(seed).exists()]
        if not missing or not self._trains:
            return
        jobs = []
        for seed in missing:
            if not self._drawn("source_half", seed).exists():
                self._draw_set("source_half", seed)
            samples = KeptSamples(str(self._drawn("source_half", seed).absolute()))
            folder = str(self._source_features(seed).absolute())
            jobs.append(
                KeepSourceFeatures(self.config, self.joint_map(), self.root(seed), samples, folder)
            )
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
            wanted = [n for n in ("source_half", *names) if not self._drawn(n, seed).exists()]
            if names and wanted:
                self.drawer()
                with self.console.phase("draw", f"drawing training images (seed {seed})"):
                    for name in wanted:
                        self._draw_set(name, seed)

    def _draw_set(self, name: str, seed: int) -> None:
        """The source half that a seed's arms share, the reference's half, an arm's own half, or
        ("<arm>_random") the random part of it."""
        total = self.config.experiment.images_per_arm
        own = total - total // 2
        stream = Seeds(self.root(seed), f"{name.removesuffix('_half')} half")
        if name in ("source_half", "reference_half"):
            kind = "source" if name == "source_half" else RANDOM
            samples, counts = self.draw(kind, total // 2, stream)
        elif name in self._fine_tuned():
            samples, counts = self._draw_own(arm_named(self.config, name), own, seed, stream)
        else:  # the random part of an arm's images
            settings = self._settings_of(name.removesuffix("_random"))
            random = own - round(own * settings.generator.share)
            samples, counts = self._draw_good(RANDOM, random, stream, (), settings)
        self.notes.samples(f"{name}-{seed}", samples)
        self.notes.counts(f"{name}-{seed}", counts)
        if name in self._fine_tuned():
            self.notes.errors(f"{name}-{seed}", samples, *self._errors(samples))
        KeptSamples.write(samples, self._drawn(name, seed))

    def _draw_own(self, arm: Arm, count: int, seed: int, stream: Seeds) -> tuple[Samples, Counts]:
        """An arm's own images."""
        extra = rendered_for_feedback(self.config)
        if arm.kind == MINED:
            return self._mine(count, count + extra, seed, stream)
        states: Sequence[dict[str, Tensor]] = ()
        if arm.kind == GENERATED:
            # the later half of training: hard in more than one way, and no longer naive
            generators = self.trained(seed, arm.name).generators
            states = generators[len(generators) // 2 :]
            count = round(count * arm.config.generator.share)
        count += extra * arm.more
        samples, counts = self._draw_good(arm.kind, count, stream, states, arm.config)
        if arm.kind == GENERATED and arm.config.generator.share < 1:
            random = self._drawn(f"{arm.name}_random", seed)
            if not random.exists():
                self._draw_set(f"{arm.name}_random", seed)
            samples = concatenate_samples([samples, KeptSamples(str(random)).get()])
        return samples, counts

    def _draw_good(
        self,
        kind: str,
        count: int,
        stream: Seeds,
        states: Sequence[dict[str, Tensor]],
        config: RunConfig,
    ) -> tuple[Samples, Counts]:
        """As `draw`, less the ambiguous ones where they are not wanted."""
        if not config.validity.unambiguous:
            return self.draw(kind, count, stream, states, config)
        parts: list[Samples] = []
        counts: Counter[str] = Counter()
        while (have := sum(map(len, parts))) < count:
            samples, more = self.draw(kind, count - have, stream, states, config)
            good = (~self._errors(samples)[1]).nonzero()[:, 0].tolist()
            parts.append(samples[good])
            counts.update(more)
            counts["ambiguous"] += len(samples) - len(good)
            counts["valid"] -= len(samples) - len(good)
        return concatenate_samples(parts), dict(counts)

    def _settings_of(self, arm: str) -> RunConfig:
        """An arm's settings; PoseGen's own where no arm is compared (`posegen train`)."""
        found = [one for one in trained_arms(self.config) if one.name == arm]
        return found[0].config if found else self.config

    def _mine(self, count: int, pool: int, seed: int, stream: Seeds) -> tuple[Samples, Counts]:
        """Of a pool of random images those that PoseGen's feedback pays best."""
        samples, counts = self.draw(RANDOM, pool, stream)
        source, _ = self._errors(KeptSamples(str(self._drawn("source_half", seed))).get())
        errors, ambiguous = self._errors(samples)
        payments = losses.feedback_payment(errors, float(source.median()), self.config.feedback)
        if not self.config.feedback.pay_ambiguous:
            payments = payments * ~ambiguous
        # equal payments (all above the band's end, say) are taken in the order of drawing
        best = payments.argsort(descending=True, stable=True)[:count].sort().values.tolist()
        return samples[best], counts

    def _errors(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The starting estimator's error on each sample [N] mm, and whether it is ambiguous [N]."""
        shared = self.backend.share(samples.images)
        answers = self._predict(shared, len(samples), self.joint_map())
        return (
            losses.joint_errors(answers, samples.joints),
            losses.ambiguous(answers, samples.joints),
        )

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
                shutil.rmtree(self._drawn(*missing[number]))

            with self.console.phase("finetune", f"fine-tuning {len(jobs)} arms"):
                self.backend.run(jobs, "fine-tuning", "step", keep)
        return {
            arm: [
                load_checkpoint(self._kept(arm, seed))["answers"]
                for seed in self.config.experiment.seeds
            ]
            for arm in self._fine_tuned()
        }

    def _fine_tuned(self) -> list[str]:
        return [arm.name for arm in fine_tuned_arms(self.config)]

    def _missing(self) -> list[tuple[str, int]]:
        """Arms (and their seeds) that are not fine-tuned yet."""
        return [
            (arm, seed)
            for seed in self.config.experiment.seeds
            for arm in self._fine_tuned()
            if not self._kept(arm, seed).exists()
        ]

    def answer_again(self, arm: str, seed: int, tests: TestSet) -> Tensor:
        """A fine-tuned arm's answers, from its weights."""
        from posegen_ray.estimators.base import predict

        estimator = build_estimator(self.config.estimator)
        estimator.load_state_dict(load_checkpoint(self._kept(arm, seed))["weights"])
        with self.console.phase("evaluate", f"testing {arm} (seed {seed})"):
            return predict(estimator, tests.samples.images)

    def speed(self) -> RenderSpeed:
        """Measured through the run's own renderer, once."""
        kept = self._scratch / "speed"
        if not kept.exists():
            drawer = self.drawer()
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
            samples, _ = self.draw("generated", count, Seeds(0, "gallery"), states)
            KeptSamples.write(samples, kept)
        return KeptSamples(str(kept)).get().images

    def tidy(self) -> None:
        """Removes what only an unfinished run needs."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _block(self) -> int:
        return self.config.experiment.block_size

    def _kept(self, name: str, seed: int) -> Path:
        return self.folder / "checkpoint" / f"{name}-{seed}"

    @property
    def _scratch(self) -> Path:
        return self.folder / "drawn"

    def _drawn(self, name: str, seed: int) -> Path:
        return self._scratch / f"{name}-{seed}"

    def _source_features(self, seed: int) -> Path:
        return self._drawn("source_features", seed)


def _generator(arm: str) -> str:
    """What the checkpoint of an arm's generators is called."""
    return "generator" if arm == POSEGEN else f"{arm}.generator"


class Seeds:
    """An endless, named sequence of sample seeds."""

    def __init__(self, root: int, name: str) -> None:
        self._root = root
        self._name = name
        self._next = 0

    def take(self, count: int) -> list[int]:
        first, self._next = self._next, self._next + count
        return [derive_seed(self._root, self._name, i) for i in range(first, self._next)]


def _blocks(seeds: Sequence[int], size: int) -> list[list[int]]:
    return [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]


def _by_motion(samples: Samples) -> Samples:
    """Samples whose clip names have lost their frame numbers: what intervals cluster by."""
    return replace(samples, clips=tuple(clip.split(":")[0] for clip in samples.clips))
