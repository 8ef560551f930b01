"""The studio: what every process of a run builds from the configuration, and how it draws samples.

A `Studio` knows the body, the clips, the people and the crop. A `Drawer` makes labelled training
images from seeds, rendered by the subjects' NeRFs; `TestShoot` makes test images of other people on
other backgrounds, rendered by the ray-caster. Every sample depends on its own seed alone.
Knows nothing of Ray.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from posegen_ray.body import load_body
from posegen_ray.body.model import BodyModel
from posegen_ray.config import ANYHOW, BodyConfig, CameraRangeConfig, RunConfig
from posegen_ray.dressing import dressed
from posegen_ray.errors import DataError, SubjectError
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.registry import crop_spec
from posegen_ray.generation.generator import Generator, GeneratorSampler
from posegen_ray.generation.proposal import (
    PoseBank,
    Proposal,
    ProposalSampler,
    RandomSampler,
    RealPoseSampler,
    SourceSampler,
)
from posegen_ray.generation.validity import ValidityChecker
from posegen_ray.meter import CallMeter
from posegen_ray.motion.splits import MotionSplits, load_splits
from posegen_ray.photographs import Photographs, photographs_of
from posegen_ray.records import (
    RenderFn,
    RenderRequest,
    RenderResult,
    Samples,
    concatenate_samples,
)
from posegen_ray.scene import (
    People,
    check_proposal,
    draw_samples,
    propose_valid,
    seeded_backgrounds,
)
from posegen_ray.seeding import derive_seed
from posegen_ray.subjects import makehuman
from posegen_ray.subjects.raycast import TexturedMesh, random_light, raycast
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject, read_manifest
from posegen_ray.subjects.wardrobe import Performer, people

Counts = dict[str, int]  # proposals drawn, valid, and rejected by reason
Folders = tuple[tuple[str, str], ...]  # subject -> its folder


class RenderSource(Protocol):
    """Where rendered pictures come from: this process, or a pool of servers. Picklable."""

    def render_fn(self) -> RenderFn: ...

    def metrics(self) -> Mapping[str, float]:
        """How rendering went since the last call, for TensorBoard: `images_per_s`,
        `latency_p50_ms`, `latency_p99_ms`, and what else the source knows."""


class LocalRenderer:
    """Renders in this process; loads the subjects at the first use."""

    def __init__(self, config: RunConfig, folders: Folders) -> None:
        self._config = config
        self._folders = folders
        self._render: RenderFn | None = None
        self._meter = CallMeter()

    def render_fn(self) -> RenderFn:
        if self._render is None:
            subjects = {name: load_subject(Path(path)) for name, path in self._folders}
            device = self._config.runtime.device
            self._render = self._timed(make_renderer(self._config.renderer, subjects, device))
        return self._render

    def metrics(self) -> Mapping[str, float]:
        return self._meter.read()

    def _timed(self, render: RenderFn) -> RenderFn:
        def timed(request: RenderRequest) -> RenderResult:
            start = time.monotonic()
            result = render(request)
            self._meter.add(len(request), time.monotonic() - start)
            return result

        return timed

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_render": None}


class Studio:
    """Everything that a process needs to propose, pose and label.

    Args:
        config: the run's configuration.
        folders: training subjects (none where only test images are made).
    """

    def __init__(self, config: RunConfig, folders: Folders) -> None:
        self.config = config
        self.folders = folders
        self.body: BodyModel = load_body(config.body)
        self.splits: MotionSplits = load_splits(config.motion)
        self.source = PoseBank.from_clips(self.splits.source_train)
        self.crop: CropSpec = crop_spec(config.estimator)

    @functools.cached_property
    def people(self) -> People:
        """The training subjects."""
        manifests = [read_manifest(Path(folder)) for _, folder in self.folders]
        for manifest in manifests:
            if manifest.body != self.body.name:
                raise SubjectError(
                    f"Subject {manifest.name!r} was made on the {manifest.body} body, but the run "
                    f"uses {self.body.name}.",
                    f"Choose body={manifest.body}, or other subjects.",
                )
        shapes = torch.stack([torch.as_tensor(m.shape, dtype=torch.float32) for m in manifests])
        return People(tuple(name for name, _ in self.folders), shapes, self.body)

    @functools.cached_property
    def photographs(self) -> Photographs | None:
        """What is among the source images beside rendered people, if anything."""
        return photographs_of(self.config)

    @functools.cached_property
    def checker(self) -> ValidityChecker:
        """Validity of training samples, calibrated on the source's training frames."""
        real = self.source.poses.rotations
        return ValidityChecker(self.config.validity, self.body, self.people.shapes, real)

    def generator(self, people: People | None = None) -> Generator:
        """An untrained generator, where the people are (the studio's own, unless told).

        Its candidates are screened before one is chosen.
        """
        cast = people or self.people

        def valid(proposal: Proposal) -> Tensor:
            return check_proposal(proposal, cast, self.checker).valid

        generator = Generator(self.config.generator, self.source, len(self.folders), valid)
        return generator.to(cast.shapes.device)

    def source_sampler(self) -> SourceSampler:
        """Real training poses at eye level."""
        return SourceSampler(self.source, len(self.folders), self.config.generator.light)

    def band_sampler(self, generator: Generator) -> ProposalSampler:
        """What the estimator's error is measured on to state the band in (feedback.band_of)."""
        if self.config.feedback.band_of == "prior":
            return GeneratorSampler(generator)
        return self.source_sampler()

    def random_sampler(self) -> RandomSampler:
        """Broad random poses and cameras, in the generator's ranges."""
        settings, count = self.config.generator, len(self.folders)
        return RandomSampler(
            self.source,
            settings.camera,
            count,
            settings.recombine,
            settings.tumble,
            light=settings.light,
            condition=settings.condition,
        )

    def real_sampler(self) -> RealPoseSampler:
        """Real training poses, cameras in the generator's ranges."""
        settings, count = self.config.generator, len(self.folders)
        return RealPoseSampler(
            self.source, settings.camera, count, settings.light, settings.condition
        )


def studio_of(config: RunConfig, folders: Folders) -> Studio:
    """This process's studio for a configuration; built once."""
    key = (json.dumps(asdict(config), sort_keys=True), folders)
    if key not in _studios:
        _studios.clear()
        _studios[key] = Studio(config, folders)
    return _studios[key]


_studios: dict[tuple[str, Folders], Studio] = {}


class Patience:
    """Ends a search for valid images that finds none.

    Args:
        what: the images.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._in_vain = 0
        self._counts: Counter[str] = Counter()

    def note(self, tried: int, found: int, counts: Mapping[str, int]) -> None:
        """Of `tried` seeds `found` became images; `counts` says why the others did not.

        Raises:
            DataError: for the last `_PATIENCE` seeds there was none.
        """
        self._in_vain = 0 if found else self._in_vain + tried
        self._counts = Counter() if found else self._counts + Counter(counts)
        if self._in_vain < _PATIENCE:
            return
        reasons = ((n, name) for name, n in self._counts.items() if name not in ("drawn", "valid"))
        said = ", ".join(f"{name} {n}" for n, name in sorted(reasons, reverse=True) if n)
        why = f" ({said} of {self._counts['drawn']} proposals)" if said else ""
        raise DataError(
            f"The last {self._in_vain} tries gave no {self._what} image that could be used{why}.",
            "Widen what most of them broke (validity.*, generator.camera, generator.condition); "
            "where people are absent, look at the subjects: posegen subjects turntable NAME.",
        )


_PATIENCE = 400  # tries, each of several proposals


# --- training images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawer:
    """Draws training images, one per seed. Picklable: a cluster carries it to its actors."""

    config: RunConfig
    folders: Folders
    renderer: RenderSource

    def source(self, seeds: Sequence[int]) -> tuple[Samples, Counts]:
        """Real poses of the source clips at eye level, and photographs."""
        studio = self._studio
        if studio.photographs is None:
            return self._draw(studio.source_sampler(), seeds)
        chosen, others = studio.photographs.among(seeds)
        photographs = studio.photographs.draw(chosen, studio.body)
        if not others:
            return photographs, {}
        rendered, counts = self._draw(studio.source_sampler(), others)
        return concatenate_samples([rendered, photographs]), counts

    def random(self, seeds: Sequence[int]) -> tuple[Samples, Counts]:
        """Broad random poses and cameras."""
        return self._draw(self._studio.random_sampler(), seeds)

    def real(self, seeds: Sequence[int]) -> tuple[Samples, Counts]:
        """Real poses of the source clips, broad random cameras."""
        return self._draw(self._studio.real_sampler(), seeds)

    def generated(
        self, states: Sequence[Mapping[str, Tensor]], seeds: Sequence[int]
    ) -> tuple[Samples, Counts]:
        """Samples of trained generators: seed s uses version s mod len(states)."""
        parts: list[tuple[Samples, Counts]] = []
        for version, state in enumerate(states):
            mine = [seed for seed in seeds if seed % len(states) == version]
            if mine:
                generator = self._studio.generator()
                generator.load_weights(state)
                parts.append(self._draw(GeneratorSampler(generator), mine))
        counts: Counter[str] = Counter()
        for _, part in parts:
            counts.update(part)
        return concatenate_samples([samples for samples, _ in parts]), dict(counts)

    def __call__(self, state: Mapping[str, Tensor], seeds: Sequence[int]) -> Samples:
        """A batch for the live estimator: half generated by this version, half source."""
        half = len(seeds) // 2
        generated, _ = self.generated([state], seeds[:half])
        source, _ = self.source(seeds[half:])
        return concatenate_samples([generated, source])

    @property
    def _studio(self) -> Studio:
        return studio_of(self.config, self.folders)

    def _draw(self, sampler: ProposalSampler, seeds: Sequence[int]) -> tuple[Samples, Counts]:
        studio = self._studio
        proposal, names, validity = propose_valid(sampler, seeds, studio.people, studio.checker)
        samples, kept = draw_samples(
            proposal,
            names,
            self.renderer.render_fn(),
            studio.people,
            studio.crop,
            seeded_backgrounds("train", self.config.training.plain_backgrounds),
            seeds,
            studio.checker,
        )
        assert kept is not None
        counts = validity.counts()
        absent = int(kept.valid.sum()) - len(samples)
        return samples, {**counts, "valid": counts["valid"] - absent, "absent": absent}


# --- test images --------------------------------------------------------------------------------

EXTREME = CameraRangeConfig(elevation_low=25.0, elevation_high=80.0)
# no training camera comes as near or is held as crooked
CROOKED = CameraRangeConfig(
    elevation_low=0.0, elevation_high=60.0, roll=60.0, distance_low=1.6, distance_high=2.2
)
MAKEHUMAN = "makehuman"  # a cast of test people beside the wardrobe's


@dataclass(frozen=True)
class TestShoot:
    """Makes one set of test images: other people, other backgrounds, another renderer.

    Sets: "source" (the source clips' other halves, eye level), "wild" (the same frames from extreme
    views), "view" (the same frames from near and tilted cameras), "person" (the same frames at eye
    level, MakeHuman's people), "motion" (unseen clips, eye level), "ood" (unseen clips, from eye
    level and from extreme views), "validation" (clips and people of its own, both kinds of views),
    "val_source" (source clips at eye level, the validation people).
    """

    config: RunConfig
    name: str

    def seeds(self, count: int) -> list[int]:
        """The seeds of the set's first `count` images: the same for every run and arm.

        Source, wild and view share theirs, so they show the same people in the same frames.
        """
        stream = "source" if self.name in ("wild", "view") else self.name
        return [derive_seed(0, "test", stream, index) for index in range(count)]

    def __call__(self, seeds: Sequence[int]) -> Samples:
        """The set's images for these seeds; seeds without a valid proposal are left out."""
        cast = {"validation": "val", "val_source": "val", "person": MAKEHUMAN}.get(
            self.name, "test"
        )
        models = models_of(self.config, cast)
        bank, checker = models.sets[self.name]
        cameras = _CAMERAS.get(self.name, (CameraRangeConfig.eye_level(), EXTREME))
        parts = []
        for number, camera in enumerate(cameras):
            mine = [seed for seed in seeds if seed % len(cameras) == number]
            if mine:
                sampler = RealPoseSampler(bank, camera, len(models.meshes))
                parts.append(self._shoot(models, sampler, mine, checker))
        return concatenate_samples(parts)

    def _shoot(
        self,
        models: Models,
        sampler: ProposalSampler,
        seeds: Sequence[int],
        checker: ValidityChecker,
    ) -> Samples:
        proposal, names, _ = propose_valid(sampler, seeds, models.people, checker)
        rows = check_proposal(proposal, models.people, checker).valid.nonzero()[:, 0].tolist()
        kept = [seeds[row] for row in rows]
        samples, _ = draw_samples(
            proposal[rows],
            [names[row] for row in rows],
            models.render_fn(kept),
            models.people,
            models.crop,
            seeded_backgrounds(models.split),
            kept,
        )
        return samples


_CAMERAS = {  # of sets that are seen in one way
    "source": (CameraRangeConfig.eye_level(),),
    "wild": (EXTREME,),
    "view": (CROOKED,),
    "motion": (CameraRangeConfig.eye_level(),),
    "val_source": (CameraRangeConfig.eye_level(),),
    "person": (CameraRangeConfig.eye_level(),),
}


@dataclass(frozen=True)
class Models:
    """Textured people in front of the ray-caster, and the poses they take."""

    split: str  # of the backgrounds: test | val
    crop: CropSpec
    people: People
    meshes: tuple[TexturedMesh, ...]
    sets: Mapping[str, tuple[PoseBank, ValidityChecker]]

    def render_fn(self, seeds: Sequence[int]) -> RenderFn:
        """A ray-caster for requests of len(seeds) items, each lit from its own seed.

        Not differentiable.
        """
        lights = [random_light(1, derive_seed(seed, "light")) for seed in seeds]

        def render(request: RenderRequest) -> RenderResult:
            rgba = []
            for item, light in enumerate(lights):
                mesh = self.meshes[self.people.names.index(request.subjects[item])]
                one = request[[item]]
                rgba.append(raycast(mesh, one.bones, one.camera, light))
            return RenderResult(torch.cat(rgba))

        return render


def models_of(config: RunConfig, cast: str) -> Models:
    """This process's models of a cast (test, val, makehuman); made once."""
    key = (json.dumps(asdict(config), sort_keys=True), cast)
    if key not in _models:
        studio = studio_of(config, ())
        performers = _cast(cast)
        shapes = torch.stack([performer.shape(studio.body) for performer in performers])
        group = People(tuple(person.name for person in performers), shapes, studio.body)
        splits = studio.splits
        clips = {
            "test": {
                "source": splits.source_test,
                "wild": splits.source_test,
                "view": splits.source_test,
                "motion": splits.ood,
                "ood": splits.ood,
            },
            # frames that train others; the test's halves stay unseen
            "val": {"validation": splits.validation, "val_source": splits.source_train},
            MAKEHUMAN: {"person": splits.source_test},
        }[cast]
        banks = {name: PoseBank.from_clips(part) for name, part in clips.items()}
        grounded = replace(config.validity, above_ground=True, support=ANYHOW)
        sets = {
            name: (bank, ValidityChecker(grounded, studio.body, shapes, bank.poses.rotations))
            for name, bank in banks.items()
        }
        split = "val" if cast == "val" else "test"
        _models[key] = Models(split, studio.crop, group, _dressed(config.body, cast), sets)
    return _models[key]


def _cast(name: str) -> Sequence[Performer]:
    return list(makehuman.PEOPLE.values()) if name == MAKEHUMAN else people(name)


def _dressed(body: BodyConfig, cast: str) -> tuple[TexturedMesh, ...]:
    """The meshes of a cast; the same ones for all settings but the body's."""
    key = (json.dumps(asdict(body), sort_keys=True), cast)
    if key not in _meshes:
        loaded = load_body(body)
        _meshes[key] = tuple(dressed(one, loaded) for one in _cast(cast))
    return _meshes[key]


_models: dict[tuple[str, str], Models] = {}
_meshes: dict[tuple[str, str], tuple[TexturedMesh, ...]] = {}
