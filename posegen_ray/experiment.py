"""A comparison of fine-tuning data: people, test sets, training, arms, evaluation, report.

The same sequence for every runtime. What a phase leaves is kept in the run folder at once, so a run
that was interrupted goes on where it stopped and ends with the same numbers.

    runs/<name>/config.yaml             all settings
                checkpoint/             joint map, generators, fine-tuned estimators
                training/               adversarial training's own checkpoints
                samples/*.parquet       what every training and test image was made from
                tensorboard/            curves, histograms, generated images
                evaluation.*            predictions and test images: all that the report needs
                summary.json report.html
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from posegen_ray.body import load_body
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.compose import dump_config, read_config
from posegen_ray.config import EvaluationConfig, RunConfig
from posegen_ray.console import Console
from posegen_ray.errors import (
    CheckpointError,
    ConfigError,
    ResourceError,
    SubjectError,
)
from posegen_ray.estimators.blazepose import BlazePose, fit_joint_map
from posegen_ray.estimators.registry import load_estimator
from posegen_ray.evaluation.report import write_report
from posegen_ray.evaluation.store import (
    RenderSpeed,
    ReportInputs,
    load_evaluation,
    save_evaluation,
)
from posegen_ray.evaluation.summary import (
    build_summary,
    collect_versions,
    terminal_table,
    write_summary,
)
from posegen_ray.jobs import Draw, FineTune, FitPerson, Predict, Shoot, render_speed, subjects_root
from posegen_ray.local import Backend, Shared
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.seeding import derive_seed
from posegen_ray.studio import Counts, Drawer, Folders, TestShoot
from posegen_ray.subjects.capture import read_capture
from posegen_ray.subjects.fit import fit_subject
from posegen_ray.subjects.store import SubjectManifest, list_subjects, read_manifest, save_subject
from posegen_ray.subjects.wardrobe import people
from posegen_ray.training import AdversarialTraining, TrainingResult, history_table

TEST_SETS = ("source", "wild", "ood")
FINE_TUNED = ("source_adapted", "random", "posegen")


# --- run folders --------------------------------------------------------------------------------


def open_run_folder(config: RunConfig, overrides: Sequence[str]) -> tuple[RunConfig, Path]:
    """A fresh run folder, or the one that resume= names, with the settings it was started with.

    What lies in a fresh run's folder already is moved aside, never overwritten.

    Raises:
        ConfigError: resume= names no run, or comes with settings that differ from the run's.
        ResourceError: the folder cannot be written.
    """
    if config.resume:
        folder = Path(config.resume)
        loaded = read_config(folder / "config.yaml")
        runtime_only = [o for o in overrides if not o.lstrip("+").startswith("runtime")]
        if runtime_only:
            raise ConfigError(
                f"resume={folder} goes on with the run's own settings; {runtime_only[0]!r} would "
                "change them.",
                "Leave all settings but runtime=… out, or start a new run.",
            )
        return replace(loaded, resume=str(folder), runtime=config.runtime), folder
    folder = Path(config.run_dir)
    try:
        if folder.exists() and any(folder.iterdir()):
            os.replace(folder, _free_name(folder))
        folder.mkdir(parents=True, exist_ok=True)
        dump_config(config, folder / "config.yaml")
    except OSError as error:
        raise ResourceError(
            f"The run folder {folder} cannot be written ({error.strerror or error}).",
            "Choose a writable one with run_dir=…, or free space.",
        ) from error
    return config, folder


def open_finished_run(config: RunConfig) -> tuple[Path, RunConfig]:
    """The run that run= names, and its settings (with this command's runtime, n and out)."""
    if not config.run:
        raise ConfigError("No run is named.", "Add run=<run folder>, for example run=runs/demo.")
    folder = Path(config.run)
    loaded = read_config(folder / "config.yaml")
    return folder, replace(
        loaded, run=config.run, n=config.n, out=config.out, runtime=config.runtime
    )


def _free_name(folder: Path) -> Path:
    number = 1
    while (name := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return name


# --- commands -----------------------------------------------------------------------------------


def run_experiment(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """The whole comparison; returns the table for the terminal."""
    run = Run(config, folder, backend, console)
    tests = run.test_set()
    answers: dict[str, list[Tensor]] = {"baseline": [run.baseline(tests)]}
    for arm in config.experiment.arms:
        if arm != "baseline":
            answers[arm] = []
    for seed in config.experiment.seeds:
        for arm, answer in run.arms(seed, tests).items():
            answers[arm].append(answer)
    speed = run.speed()
    drawn, valid, reasons = run.candidates()
    predictions = {arm: torch.stack(rows) for arm, rows in answers.items()}
    inputs = ReportInputs(
        estimator=run.estimator_name,
        seeds=tuple(config.experiment.seeds),
        predictions=predictions,
        samples=tests.samples,
        sets=tests.sets,
        train_images=config.experiment.images_per_arm,
        timing_s=dict(console.timing_s),
        versions=collect_versions(),
        render=speed,
        rejected=reasons,
        rejected_total=drawn - valid,
        history=run.history(),
        generated=run.gallery(),
        title=f"PoseGen: {config.experiment.name}",
        settings=run.settings(),
    )
    save_evaluation(folder, inputs)
    return _write_results(folder, inputs, config.evaluation)


def run_training(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Adversarial training for each seed."""
    run = Run(config, folder, backend, console)
    lines = []
    for seed in config.experiment.seeds:
        result = run.training(seed)
        last = [row["error_mm"] for row in result.history[-20:] if row["error_mm"] > 0]
        median = float(np.median(last)) if last else float("nan")
        lines.append(
            f"seed {seed}: the estimator's median error is {result.reference_mm:.0f} mm on real "
            f"poses, {median:.0f} mm on the last generated ones; {folder / 'checkpoint'}"
        )
    return "\n".join(lines)


def run_generation(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Draws config.n labelled images from a run's generators into config.out."""
    from posegen_ray.datasets.folder import write_folder

    run = Run(config, folder, backend, console)
    out = Path(config.out or folder / "generated")
    seed = config.experiment.seeds[0]
    states = run.trained(seed).generators
    seeds = _Seeds(run.root(seed), "generate")
    with console.phase("generate", f"drawing {config.n} images"):
        samples, _ = run.draw("generated", config.n, seeds, states[len(states) // 2 :])
        write_folder(samples, out)
    return str(out)


def run_evaluation(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Predicts the test images again with the run's estimators, and writes its results again."""
    before = load_evaluation(folder)
    run = Run(config, folder, backend, console)
    tests = run.test_set()
    predictions = {"baseline": torch.stack([run.baseline(tests)])}
    for arm in before.arms:
        if arm != "baseline":
            rows = [run.answer_again(arm, seed, tests) for seed in config.experiment.seeds]
            predictions[arm] = torch.stack(rows)
    inputs = replace(before, predictions=predictions, samples=tests.samples, sets=tests.sets)
    save_evaluation(folder, inputs)
    return _write_results(folder, inputs, config.evaluation)


def rewrite_report(folder: Path) -> Path:
    """Writes report.html (and summary.json) from what the run left."""
    config = read_config(folder / "config.yaml")
    _write_results(folder, load_evaluation(folder), config.evaluation)
    return folder / "report.html"


def fit_capture(config: RunConfig, console: Console) -> str:
    """Makes a subject from the capture folder config.capture, named like the capture."""
    if not config.capture:
        raise ConfigError("No capture is named.", "Add capture=<folder>; see docs/captures.md.")
    capture = read_capture(config.capture)
    body = load_body(config.body)
    root = Path(config.out) if config.out else subjects_root(config)
    bar = console.bar("fitting", config.fit.steps, "step")
    try:
        subject = fit_subject(
            capture,
            body,
            config.fit,
            config.seed,
            progress=lambda done, *_: bar.update(done - bar.n),
        )
    finally:
        bar.close()
    save_subject(subject, root / capture.name)
    return f"{root / capture.name}: {_quality(subject.manifest)}"


def _quality(manifest: SubjectManifest) -> str:
    if not manifest.held_out_frames:
        return "no held-out frames to measure on"
    return (
        f"PSNR {manifest.psnr_person:.1f} dB on the person, {manifest.psnr_full:.1f} dB on the "
        f"whole picture ({manifest.held_out_frames} held-out frames)"
    )


def _write_results(folder: Path, inputs: ReportInputs, settings: EvaluationConfig) -> str:
    summary = build_summary(inputs, settings.bootstrap)
    write_summary(folder, summary)
    write_report(folder, inputs, settings)
    return terminal_table(summary)


# --- phases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestSet:
    """All test images, and to which set each belongs."""

    samples: Samples
    sets: tuple[str, ...]
    images: Shared[Tensor]  # the same images, where jobs can read them


class Run:
    """One run: its phases, each done once and kept in the run folder."""

    def __init__(self, config: RunConfig, folder: Path, backend: Backend, console: Console) -> None:
        self.config = config
        self.folder = folder
        self.backend = backend
        self.console = console
        self.estimator_name = load_estimator(config.estimator).name
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
        known = {person.name: person for person in people("train")}
        unknown = [name for name in settings.names if name not in known]
        if unknown:
            raise SubjectError(
                f"{unknown[0]!r} is not one of the wardrobe's training people.",
                f"They are {', '.join(known)}.",
            )
        jobs = [FitPerson(self.config, name) for name in settings.names or known]
        missing_jobs = [job for job in jobs if not job.done]
        if missing_jobs:
            with self.console.phase("fit", f"fitting {len(missing_jobs)} people"):
                self.backend.run(missing_jobs, "fitting", "step")
            for job in missing_jobs:
                self.console.say(f"  {job.name}: {_quality(read_manifest(job.folder))}")
        self._folders = tuple((job.name, str(job.folder.absolute())) for job in jobs)
        return self._folders

    def drawer(self) -> Drawer:
        """Draws training images of the subjects."""
        folders = self.subjects()
        return Drawer(self.config, folders, self.backend.renderer(folders))

    def test_set(self) -> TestSet:
        """Source, wild and OOD test images; the same for every run."""
        experiment = self.config.experiment
        counts = {
            "source": experiment.test_source_images,
            "wild": experiment.test_wild_images,
            "ood": experiment.test_ood_images,
        }
        parts: dict[str, Samples] = {}
        with self.console.phase("test_images", f"making {sum(counts.values())} test images"):
            for name, count in counts.items():
                parts[name] = self._shoot(name, count)
        samples = concatenate_samples(list(parts.values()))
        sets = tuple(name for name, part in parts.items() for _ in range(len(part)))
        self._note_samples("test", samples)
        return TestSet(_by_motion(samples), sets, self.backend.share(samples.images))

    def _shoot(self, name: str, count: int) -> Samples:
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
        seeds: _Seeds,
        states: Sequence[dict[str, Tensor]] = (),
    ) -> tuple[Samples, Counts]:
        """Exactly `count` valid training images."""
        parts: list[Samples] = []
        counts: Counter[str] = Counter()
        drawer = self.drawer()
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
        estimator = load_estimator(self.config.estimator)
        if not isinstance(estimator, BlazePose):
            return None
        kept = self.folder / "checkpoint" / "joint_map"
        if kept.exists():
            self._joint_map = load_checkpoint(kept)["matrix"]
            return self._joint_map
        count = self.config.experiment.joint_map_images
        self.drawer()
        with self.console.phase("joint_map", "fitting the joint map on source images"):
            samples, _ = self.draw("source", count, _Seeds(0, "joint map"))
            with torch.no_grad():
                landmarks = [estimator.landmarks(x.float() / 255) for x in samples.images.split(16)]
            self._joint_map = fit_joint_map(torch.cat(landmarks), samples.joints)
        save_checkpoint(kept, {"matrix": self._joint_map})
        return self._joint_map

    def baseline(self, tests: TestSet) -> Tensor:
        """The starting estimator's answers on the test images."""
        joint_map = self.joint_map()
        job = Predict(self.config, joint_map, tests.images, len(tests.samples))
        with self.console.phase("evaluate", "testing the starting estimator"):
            return self.backend.run([job], "testing", "img")[0]  # type: ignore[no-any-return]

    def training(self, seed: int) -> TrainingResult:
        """Adversarial training of one seed: done, continued, or read back."""
        kept = self._kept("generator", seed)
        if kept.exists():
            return TrainingResult.from_state(load_checkpoint(kept))
        drawer, joint_map = self.drawer(), self.joint_map()
        training = self.config.training
        text = f"adversarial training, {training.rounds} rounds (seed {seed})"
        with self.console.phase("train", text):
            result = self.backend.train(
                lambda stream, advance: AdversarialTraining(
                    self.config,
                    drawer.folders,
                    drawer.renderer,
                    stream,
                    joint_map,
                    self.root(seed),
                    str((self.folder / "tensorboard" / f"seed_{seed}").absolute()),
                    advance,
                ),
                drawer,
                self.folder / "training" / f"seed_{seed}",
                self.root(seed),
                resume=bool(self.config.resume),
            )
        save_checkpoint(kept, result.state())
        return result

    def trained(self, seed: int) -> TrainingResult:
        """A finished training's result."""
        kept = self._kept("generator", seed)
        if not kept.exists():
            raise CheckpointError(
                f"{self.folder} holds no trained generator for seed {seed}.",
                f"Finish the run first: posegen train resume={self.folder}.",
            )
        return TrainingResult.from_state(load_checkpoint(kept))

    def arms(self, seed: int, tests: TestSet) -> dict[str, Tensor]:
        """Every fine-tuned arm's answers on the test images."""
        wanted = [arm for arm in self.config.experiment.arms if arm in FINE_TUNED]
        missing = [arm for arm in wanted if not self._kept(arm, seed).exists()]
        if missing:
            halves = self._training_sets(seed, missing)
            joint_map = self.joint_map()
            jobs = [
                FineTune(self.config, joint_map, self.root(seed), halves[arm], tests.images)
                for arm in missing
            ]
            with self.console.phase("finetune", f"fine-tuning {len(jobs)} arms (seed {seed})"):
                for arm, (weights, answers) in zip(
                    missing, self.backend.run(jobs, "fine-tuning", "step"), strict=True
                ):
                    save_checkpoint(self._kept(arm, seed), {"weights": weights, "answers": answers})
        return {arm: load_checkpoint(self._kept(arm, seed))["answers"] for arm in wanted}

    def answer_again(self, arm: str, seed: int, tests: TestSet) -> Tensor:
        """A fine-tuned arm's answers, from its weights."""
        from posegen_ray.estimators.base import predict

        estimator = load_estimator(self.config.estimator)
        estimator.load_state_dict(load_checkpoint(self._kept(arm, seed))["weights"])
        with self.console.phase("evaluate", f"testing {arm} (seed {seed})"):
            return predict(estimator, tests.samples.images)

    def _training_sets(self, seed: int, arms: Sequence[str]) -> dict[str, list[Shared[Samples]]]:
        """Each arm's images: the source half that all share, and a half of its own."""
        training = self.training(seed) if "posegen" in arms else None
        half = self.config.experiment.images_per_arm // 2
        rest = self.config.experiment.images_per_arm - half
        root = self.root(seed)
        counts: Counter[str] = Counter()
        sets: dict[str, list[Shared[Samples]]] = {}
        with self.console.phase("draw", f"drawing training images (seed {seed})"):
            common, more = self.draw("source", half, _Seeds(root, "source half"))
            counts.update(more)
            self._note_samples(f"source_half-{seed}", common)
            shared = self.backend.share(common)
            for arm in arms:
                kind = {"source_adapted": "source", "posegen": "generated"}.get(arm, arm)
                states: Sequence[dict[str, Tensor]] = ()
                if training is not None and arm == "posegen":
                    # the later half of training: hard in more than one way, and no longer naive
                    states = training.generators[len(training.generators) // 2 :]
                own, more = self.draw(kind, rest, _Seeds(root, f"{arm} half"), states)
                counts.update(more)
                self._note_samples(f"{arm}-{seed}", own)
                sets[arm] = [shared, self.backend.share(own)]
        self._note_counts(seed, counts)
        return sets

    def speed(self) -> RenderSpeed:
        """Measured through the run's own renderer."""
        with self.console.phase("render_speed", "measuring the renderer"):
            alone, with_gradient = render_speed(self.drawer())
        return RenderSpeed(alone, with_gradient)

    def candidates(self) -> tuple[int, int, dict[str, int]]:
        """Proposals drawn, valid ones, and rejections by reason, over all seeds and arms."""
        total: Counter[str] = Counter()
        for file in sorted((self.folder / "samples").glob("counts-*.json")):
            total.update(json.loads(file.read_text(encoding="utf-8")))
        reasons = {name: n for name, n in total.items() if name not in ("drawn", "valid")}
        return total["drawn"], total["valid"], reasons

    def history(self) -> pd.DataFrame:
        """The training curves of all seeds."""
        if "posegen" not in self.config.experiment.arms:
            return pd.DataFrame()
        seeds = self.config.experiment.seeds
        return history_table({seed: self.trained(seed) for seed in seeds})

    def gallery(self) -> Tensor | None:
        """Some of the images that the first seed's last generator makes."""
        if "posegen" not in self.config.experiment.arms:
            return None
        states = self.trained(self.config.experiment.seeds[0]).generators[-1:]
        count = self.config.evaluation.generated
        samples, _ = self.draw("generated", count, _Seeds(0, "gallery"), states)
        return samples.images

    def settings(self) -> dict[str, str]:
        """What the report shows of the configuration."""
        config = self.config
        stages = ", ".join(f"{stage.steps} at {stage.cut}" for stage in config.finetune.stages)
        training = config.training
        rendered = {
            str(seed): self.trained(seed).rendered
            for seed in config.experiment.seeds
            if "posegen" in config.experiment.arms
        }
        return {
            "images per arm": str(config.experiment.images_per_arm),
            "fine-tuning steps": stages,
            "adversarial steps": f"{training.rounds} rounds of {training.steps_per_round}",
            "images rendered for feedback (PoseGen only)": ", ".join(map(str, rendered.values()))
            or "none",
            "subjects": ", ".join(name for name, _ in self.subjects()),
            "body": config.body.name,
            "runtime": config.runtime.name,
        }

    @property
    def _block(self) -> int:
        return self.config.experiment.block_size

    def _kept(self, name: str, seed: int) -> Path:
        return self.folder / "checkpoint" / f"{name}-{seed}"

    def _note_samples(self, name: str, samples: Samples) -> None:
        """What each image was made from, as a table: the proof of who saw what."""
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        table = pd.DataFrame(
            {
                "clip": samples.clips,
                "subject": samples.subjects,
                "seed": samples.seeds.numpy(),
                "azimuth": samples.view[:, 0].numpy(),
                "elevation": samples.view[:, 1].numpy(),
                "roll": samples.view[:, 2].numpy(),
            }
        )
        table.to_parquet(folder / f"{name}.parquet")

    def _note_counts(self, seed: int, counts: Mapping[str, int]) -> None:
        file = self.folder / "samples" / f"counts-{seed}.json"
        file.write_text(json.dumps(dict(counts)), encoding="utf-8")


class _Seeds:
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
