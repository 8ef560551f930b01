"""People and pictures: what all phases of a run draw from.

Everything goes through the run's backend in blocks, so that it is done side by side where it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.body import load_body
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.errors import ConfigError, SubjectError
from posegen_ray.estimators.blazepose import BlazePose, fit_joint_map
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.generation import losses
from posegen_ray.jobs import (
    PREDICT_BLOCK,
    Draw,
    FitPerson,
    Predict,
    Shoot,
    subjects_root,
    training_people,
)
from posegen_ray.local import Backend, Shared
from posegen_ray.motion.splits import load_splits
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.seeding import derive_seed
from posegen_ray.studio import Counts, Drawer, Folders, Patience, TestShoot
from posegen_ray.subjects import makehuman
from posegen_ray.subjects.store import field_kind, list_subjects, read_manifest


class Drawing:
    """Makes people, training images and test images, and asks the starting estimator about them.

    Args:
        folder: of the run; the joint map is kept there.
    """

    def __init__(self, config: RunConfig, folder: Path, backend: Backend, console: Console) -> None:
        self.config = config
        self.folder = folder
        self.backend = backend
        self.console = console
        self._folders: Folders = ()
        self._joint_map: Tensor | None = None
        with console.phase("setup", "preparing body and clips"):
            # fetched and built here once, before many processes want them at the same time
            load_body(config.body, lambda text: console.say(f"  {text}"))
            load_splits(config.motion)
            if config.subject.source == "makehuman" or config.experiment.test_person_images:
                makehuman.prepare(lambda text: console.say(f"  {text}"))

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
            lit = [name for name in settings.names if field_kind(root / name) == "anerf"]
            if lit and not self.config.generator.light.holds:
                raise ConfigError(
                    f"The subject {lit[0]!r} has a field of kind anerf, which holds the light that "
                    "it was filmed in; generator.light would turn it.",
                    "Add field=anerf.",
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

    def shoot(self, name: str, count: int) -> Samples:
        """The first `count` images of a set of `TestShoot`."""
        shoot = TestShoot(self.config, name)
        parts: list[Samples] = []
        first, patience = 0, Patience(f"{name} test")
        while (have := sum(map(len, parts))) < count:
            missing = count - have
            seeds = shoot.seeds(first + missing)[first:]
            first += missing
            jobs = [Shoot(shoot, block) for block in self._blocks(seeds)]
            made = self.backend.run(jobs, f"{name} test images", "img")
            patience.note(missing, sum(map(len, made)), {})
            parts += made
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
        drawer, patience = self.drawer(config), Patience(kind)
        while (have := sum(map(len, parts))) < count:
            blocks = self._blocks(seeds.take(count - have))
            jobs = [Draw(drawer, kind, block, states) for block in blocks]
            made = self.backend.run(jobs, f"{kind} images", "img")
            for samples, more in made:
                parts.append(samples)
                counts.update(more)
            together = sum((Counter(more) for _, more in made), Counter[str]())
            patience.note(count - have, sum(len(samples) for samples, _ in made), together)
        samples = concatenate_samples(parts)
        if kind == "source" and samples.photographs.all():
            raise ConfigError(
                f"All {count} source images are photographs; errors are measured on rendered ones.",
                f"Lower photographs.share={self.config.photographs.share}, or draw more images.",
            )
        return samples, dict(counts)

    def joint_map(self) -> Tensor | None:
        """From the estimator's own joints to the skeleton's, fitted on source data, once."""
        if self._joint_map is not None:
            return self._joint_map
        if self.config.estimator.kind != "blazepose":  # the others answer the skeleton's joints
            return None
        kept = self.folder / "checkpoint" / "joint_map"
        if kept.exists():
            self._joint_map = load_checkpoint(kept)["matrix"]
            return self._joint_map
        estimator = build_estimator(self.config.estimator)
        assert isinstance(estimator, BlazePose)
        count = self.config.experiment.joint_map_images
        self.drawer()
        with self.console.phase("joint_map", "fitting the joint map on source images"):
            samples, _ = self.draw("source", count, Seeds(0, "joint map"))
            with torch.no_grad():
                landmarks = [estimator.landmarks(x.float() / 255) for x in samples.images.split(16)]
            self._joint_map = fit_joint_map(torch.cat(landmarks), samples.joints)
        save_checkpoint(kept, {"matrix": self._joint_map})
        return self._joint_map

    def predict(self, images: Shared[Tensor], count: int) -> Tensor:
        """The starting estimator's answers [count, 12, 3] on `count` images."""
        joint_map = self.joint_map()
        jobs = [
            Predict(self.config, joint_map, images, range(first, min(first + PREDICT_BLOCK, count)))
            for first in range(0, count, PREDICT_BLOCK)
        ]
        return torch.cat(self.backend.run(jobs, "testing", "img"))

    def errors(
        self, samples: Samples, joint_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The starting estimator's error on each sample [N] mm, and whether it is ambiguous [N]."""
        shared = self.backend.share(samples.images)
        answers = self.predict(shared, len(samples))
        return (
            losses.joint_errors(answers, samples.joints, joint_weights),
            losses.ambiguous(answers, samples.joints),
        )

    def _blocks(self, seeds: Sequence[int]) -> list[list[int]]:
        size = self.config.experiment.block_size
        return [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]


class Seeds:
    """An endless, named sequence of sample seeds."""

    def __init__(self, root: int, name: str) -> None:
        self._root = root
        self._name = name
        self._next = 0

    def take(self, count: int) -> list[int]:
        first, self._next = self._next, self._next + count
        return [derive_seed(self._root, self._name, i) for i in range(first, self._next)]
