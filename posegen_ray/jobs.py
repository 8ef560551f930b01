"""The pieces of work of a run, each a picklable record with `size` and `run(advance)`.

A job's result depends on the job alone, not on where, when or beside what it runs.
Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray import assets
from posegen_ray.body import load_body
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import RunConfig
from posegen_ray.dressing import code_of_making
from posegen_ray.estimators.base import PoseEstimator, predict
from posegen_ray.estimators.features import (
    KeptFeatures,
    first_cut,
    image_features,
    keep_features,
    predict_from,
)
from posegen_ray.estimators.finetune import finetune_kept
from posegen_ray.estimators.progress import FineTuneSteps, finetune_size
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.local import Shared
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.scene import assemble, propose_valid
from posegen_ray.seeding import derive_seed, torch_stream
from posegen_ray.studio import Counts, Drawer, TestShoot, studio_of
from posegen_ray.subjects import makehuman
from posegen_ray.subjects.capture import read_capture
from posegen_ray.subjects.fit import FitProgress, Watch, fit_steps, fit_subject
from posegen_ray.subjects.store import list_subjects, save_subject
from posegen_ray.subjects.wardrobe import Performer, capture_person, people
from posegen_ray.training import Advance

PREDICT_BATCH = 16
PREDICT_BLOCK = 8 * PREDICT_BATCH  # images a job: the batches are those of a single job


@dataclass(frozen=True)
class FitPerson:
    """Films one of the training people with the ray-caster and fits a subject to the capture."""

    config: RunConfig
    name: str

    @property
    def size(self) -> int:
        return fit_steps(self.config.field, self.config.fit)

    @property
    def folder(self) -> Path:
        """Where the subject is kept: it is made once for each way of making it."""
        config = self.config
        parts = (config.body, config.motion, config.subject, config.field, config.fit)
        recipe = json.dumps([asdict(part) for part in parts], sort_keys=True)
        digest = hashlib.sha256(f"{code_of_making()}{recipe}".encode()).hexdigest()[:12]
        return subjects_root(self.config) / f"{self.name}-{digest}"

    @property
    def done(self) -> bool:
        return self.folder.name in list_subjects(self.folder.parent)

    def run(self, advance: Advance) -> str:
        studio = studio_of(self.config, ())
        settings = self.config.subject
        stream = torch_stream(0, "capture", "poses")
        rows = torch.randperm(len(studio.source), generator=stream)[: settings.capture_poses]
        capture = capture_person(
            training_people(self.config)[self.name],
            studio.body,
            studio.source.poses[rows],
            settings.capture_views,
            settings.capture_size,
            derive_seed(0, "capture", self.name),
        )
        steps = _Steps(advance, self.size)
        subject = fit_subject(
            capture,
            studio.body,
            self.config.field,
            self.config.fit,
            derive_seed(0, "fit", self.name),
            watch=steps.follow,
            device=self.config.runtime.job_device,
        )
        save_subject(subject, self.folder)
        steps.finish()
        return str(self.folder)


@dataclass(frozen=True)
class FitCapture:
    """Fits a subject to a capture folder. An interrupted one goes on where it was."""

    config: RunConfig
    capture: str

    @property
    def size(self) -> int:
        return fit_steps(self.config.field, self.config.fit)

    def run(self, advance: Advance, watch: Watch | None = None) -> str:
        """The line to print."""
        capture = read_capture(self.capture)
        root = Path(self.config.out) if self.config.out else subjects_root(self.config)
        folder = root / capture.name
        steps = _Steps(advance, self.size)

        def follow(progress: FitProgress) -> None:
            steps.follow(progress)
            if watch is not None:
                watch(progress)

        subject = fit_subject(
            capture,
            load_body(self.config.body),
            self.config.field,
            self.config.fit,
            self.config.seed,
            watch=follow,
            folder=folder / "fit",
            device=self.config.runtime.job_device,
        )
        save_subject(subject, folder)
        steps.finish()
        return f"{folder}: {subject.manifest.quality}"


def training_people(config: RunConfig) -> Mapping[str, Performer]:
    """The people that subject.source can film for training, by name."""
    if config.subject.source == "makehuman":
        return makehuman.PEOPLE
    return {person.name: person for person in people("train")}


def subjects_root(config: RunConfig) -> Path:
    """Where subject folders lie."""
    return Path(config.subject.folder or assets.cache_folder() / "subjects")


@dataclass(frozen=True)
class Shoot:
    """Some images of a test set."""

    shoot: TestShoot
    seeds: Sequence[int]

    @property
    def size(self) -> int:
        return len(self.seeds)

    def run(self, advance: Advance) -> Samples:
        samples = self.shoot(self.seeds)
        advance(self.size)
        return samples


@dataclass(frozen=True)
class Draw:
    """Some training images: kind "source", "random", "real" or "generated" (with generators)."""

    drawer: Drawer
    kind: str
    seeds: Sequence[int]
    states: Sequence[dict[str, Tensor]] = ()

    @property
    def size(self) -> int:
        return len(self.seeds)

    def run(self, advance: Advance) -> tuple[Samples, Counts]:
        if self.kind == "generated":
            result = self.drawer.generated(self.states, self.seeds)
        else:
            drawer = self.drawer
            draw = {"source": drawer.source, "random": drawer.random, "real": drawer.real}
            result = draw[self.kind](self.seeds)
        advance(self.size)
        return result


@dataclass(frozen=True)
class Predict:
    """The pre-trained estimator's answers on some of the images."""

    config: RunConfig
    joint_map: Tensor | None
    images: Shared[Tensor]  # [N, 3, S, S] uint8
    rows: range

    @property
    def size(self) -> int:
        return len(self.rows)

    def run(self, advance: Advance) -> Tensor:  # [len(rows), 12, 3]
        estimator = starting_estimator(self.config, self.joint_map)
        images = self.images.get()[self.rows.start : self.rows.stop]
        answers = predict(estimator, images, PREDICT_BATCH)
        advance(self.size)
        return answers


@dataclass(frozen=True)
class KeepSourceFeatures:
    """Computes the features of the source images that all arms of a seed share."""

    config: RunConfig
    joint_map: Tensor | None
    seed: int
    samples: Shared[Samples]
    folder: str  # where they go

    @property
    def size(self) -> int:
        return finetune_size(replace(self.config.finetune, stages=[]), self._images)

    @property
    def _images(self) -> int:
        return self.config.experiment.images_per_arm // 2

    def run(self, advance: Advance) -> None:
        estimator, settings = starting_estimator(self.config, self.joint_map), self.config.finetune
        steps = FineTuneSteps(advance, replace(settings, stages=[]), self._images)
        samples = self.samples.get()
        kept = keep_features(estimator, samples, settings, self.seed, steps, source=len(samples))
        kept.write(Path(self.folder))
        steps.finish()


@dataclass(frozen=True)
class KeepTestFeatures:
    """Computes what all fine-tuned estimators share of their look at the test images."""

    config: RunConfig
    images: Shared[Tensor]  # [N, 3, S, S] uint8
    folder: str  # where it goes

    @property
    def size(self) -> int:
        return 1

    def run(self, advance: Advance) -> None:
        estimator, settings = starting_estimator(self.config, None), self.config.finetune
        features = image_features(estimator, self.images.get(), settings, PREDICT_BATCH)
        save_checkpoint(Path(self.folder), {"features": features})
        advance(1)


@dataclass(frozen=True)
class Tests:
    """The test images, for fine-tuned estimators."""

    images: Shared[Tensor]  # [N, 3, S, S] uint8
    features: str  # folder of KeepTestFeatures

    def answers(self, estimator: PoseEstimator, cut: str) -> Tensor:  # [N, 12, 3]
        """Of an estimator that was fine-tuned from that cut on."""
        features = load_checkpoint(Path(self.features))["features"]
        if features is None:
            return predict(estimator, self.images.get(), PREDICT_BATCH)
        return predict_from(estimator, features, cut, PREDICT_BATCH)


@dataclass(frozen=True)
class FineTune:
    """Fine-tunes the starting estimator on source images and others, and tests it, if there are
    tests."""

    config: RunConfig
    joint_map: Tensor | None
    seed: int
    source: str  # folder of KeepSourceFeatures; empty: no stage trains
    others: Sequence[Shared[Samples]]  # the arm's own images
    tests: Tests | None

    @property
    def size(self) -> int:
        return finetune_size(self.config.finetune, self._images)

    @property
    def _images(self) -> int:
        return len(self.others) * (self.config.experiment.images_per_arm // 2)

    def run(self, advance: Advance) -> tuple[dict[str, Tensor], Tensor | None]:
        """The fine-tuned weights, and the answers [N, 12, 3] on the test images."""
        estimator, settings = starting_estimator(self.config, self.joint_map), self.config.finetune
        steps = FineTuneSteps(advance, settings, self._images)
        kept = KeptFeatures.read(Path(self.source)) if self.source else None
        if kept is not None and self.others:
            samples = concatenate_samples([others.get() for others in self.others])
            kept = keep_features(estimator, samples, settings, self.seed, steps, before=kept)
            del samples
        body = self.config.body.name
        tuned = finetune_kept(estimator, kept, settings, self.seed, steps, body=body)
        answers = None
        if self.tests is not None:
            answers = self.tests.answers(tuned, first_cut(tuned, settings))
        steps.finish()
        return {name: value.cpu() for name, value in tuned.state_dict().items()}, answers


def starting_estimator(config: RunConfig, joint_map: Tensor | None) -> PoseEstimator:
    """The pre-trained estimator that every arm starts from, where jobs compute."""
    estimator = build_estimator(config.estimator)
    if joint_map is not None:
        estimator.set_joint_map(joint_map)
    return estimator.to(config.runtime.job_device)


def render_speed(drawer: Drawer, batches: int = 3, size: int = 8) -> tuple[float, float]:
    """Images per second, rendered alone and with gradients, through whatever renders them."""
    studio = studio_of(drawer.config, drawer.folders)
    seeds = [derive_seed(0, "speed", index) for index in range(size)]
    sampler = studio.source_sampler()
    proposal, _, _ = propose_valid(sampler, seeds, studio.people, studio.checker)
    request = assemble(proposal, studio.people, studio.crop).request
    render = drawer.renderer.render_fn()
    times = []
    for with_gradient in (False, True):
        start = 0.0
        for batch in range(batches + 1):
            if batch == 1:  # the first warms up
                start = time.perf_counter()
            bones = request.bones.detach().clone().requires_grad_(with_gradient)
            rgba = render(replace(request, bones=bones, camera=request.camera.detach())).rgba
            if with_gradient:
                rgba.square().mean().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    return batches * size / times[0], batches * size / times[1]


class _Steps:
    """Turns "so many in all" into "so many more"."""

    def __init__(self, advance: Advance, size: int) -> None:
        self._advance = advance
        self._size = size
        self._done = 0

    def follow(self, progress: FitProgress) -> None:
        self._reach(progress.done)

    def finish(self) -> None:
        """Also when fewer steps were enough."""
        self._reach(self._size)

    def _reach(self, done: int) -> None:
        if done > self._done:
            self._advance(done - self._done)
            self._done = done
