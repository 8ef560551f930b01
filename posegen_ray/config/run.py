"""All settings of a command (conf/config.yaml)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from posegen_ray.config.body import BodyConfig
from posegen_ray.config.datasets import DatasetConfig, PhotographsConfig
from posegen_ray.config.estimators import BLACK_BOX, EstimatorConfig, FineTuneConfig, PretrainConfig
from posegen_ray.config.experiment import EvaluationConfig, ExperimentConfig, TrainingConfig
from posegen_ray.config.export import EXPORT_FORMATS, ExportConfig
from posegen_ray.config.generation import (
    ANYHOW,
    DiscriminatorConfig,
    FeedbackConfig,
    GeneratorConfig,
    ValidityConfig,
)
from posegen_ray.config.motion import MotionConfig
from posegen_ray.config.rules import require
from posegen_ray.config.runtime import RuntimeConfig
from posegen_ray.config.subjects import (
    ConvertConfig,
    FieldConfig,
    FitConfig,
    RendererConfig,
    SubjectsConfig,
)
from posegen_ray.config.tune import TuneConfig, check_space


@dataclass
class RunConfig:
    """Everything that a command can be told (conf/config.yaml)."""

    seed: int = 0  # added to every seed of the experiment
    run_dir: str = "runs/${experiment.name}"
    resume: str = ""  # a run folder to go on with
    run: str = ""  # generate, evaluate, report, atlas: the finished run to work on
    arm: str = ""  # atlas: which arm is "after"; empty: the report's
    capture: str = ""  # fit: the capture folder
    # fit: several side by side, each a capture folder or a person of subject.source
    subjects: list[str] = field(default_factory=list)
    out: str = ""  # convert, fit, pretrain, generate, evaluate dataset=…: where the result goes
    # evaluate dataset=…: the test set's folder; experiment: holds one folder (or link) a test set,
    # of its name
    data_root: str = ""
    # experiment: names under conf/estimator and conf/dataset
    estimators: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    checkpoints: dict[str, str] = field(default_factory=dict)  # experiment: an estimator's file
    # experiment: whether an estimator's checkpoint was trained on 3DPW; it cannot be told from it
    trained_on_3dpw: dict[str, bool] = field(default_factory=dict)
    n: int = 100  # generate: how many images; dataset show: how many of them (9 unless told)
    n_trials: int = 16  # tune: how many, the default settings among them
    format: str = "folder"  # generate: folder | parquet | webdataset | spin | bedlam
    export: ExportConfig = field(default_factory=ExportConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    subject: SubjectsConfig = field(default_factory=SubjectsConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    photographs: PhotographsConfig = field(default_factory=PhotographsConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    validity: ValidityConfig = field(default_factory=ValidityConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    # the last one: from here on `field` is no longer the dataclasses' function
    field: FieldConfig = field(default_factory=FieldConfig)

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n={self.n} must be at least 1.", "Ask for at least one image.")
        require(
            self.format in EXPORT_FORMATS,
            f"format={self.format!r} is not a format of generated sets.",
            f"Choose one of {', '.join(EXPORT_FORMATS)}; docs/datasets.md describes them.",
        )
        require(
            self.subject.source != "makehuman" or self.body.name == "anny",
            f"subject.source=makehuman cannot dress body.name={self.body.name!r}.",
            "MakeHuman's garments fit Anny only: use body=anny.",
        )
        require(
            self.estimator.kind != BLACK_BOX or self.training.estimator_steps == 0,
            f"training.estimator_steps={self.training.estimator_steps}: estimator=black_box cannot "
            "be updated, only its answers are known.",
            "Leave training.estimator_steps at 0, as conf/estimator/black_box.yaml has it.",
        )
        require(
            self.estimator.kind != BLACK_BOX or self.training.attack == "pretrained",
            f"training.attack={self.training.attack}: estimator=black_box cannot be fine-tuned "
            "before it is attacked.",
            "Leave training.attack at pretrained, as conf/estimator/black_box.yaml has it.",
        )
        require(
            self.training.attack != "random" or self.generator.share < 1,
            "training.attack=random, but generator.share=1 leaves PoseGen no random images.",
            "Set generator.share below 1, for example 0.5, or training.attack=source.",
        )
        require(
            not self.experiment.test_person_images
            or (self.body.name == "anny" and self.subject.source != "makehuman"),
            f"experiment.test_person_images={self.experiment.test_person_images} shows MakeHuman's "
            "people, who wear Anny's body and must not be trained on.",
            "Set experiment.test_person_images=0, or use body=anny and other training people.",
        )
        own = self.experiment.images_per_arm - self.experiment.images_per_arm // 2
        require(
            self.generator.share == 1 or 0 < round(own * self.generator.share) < own,
            f"generator.share={self.generator.share} of an arm's own {own} images (half of "
            f"experiment.images_per_arm={self.experiment.images_per_arm}) leaves one part empty.",
            "Set generator.share to 1 or nearer to 0.5, or use more images.",
        )
        require(
            self.finetune.source_share < 0 or self.training.attack != "source",
            f"finetune.source_share={self.finetune.source_share} cannot be had for the estimator "
            "that training.attack=source attacks: it is fine-tuned on source images alone.",
            "Use finetune.source_share=-1, or training.attack=random.",
        )
        require(
            self.pretrain.finetune.source_share in (-1, 1),
            f"pretrain.finetune.source_share={self.pretrain.finetune.source_share}, but a "
            "pre-training has source images only.",
            "Leave it at -1.",
        )
        require(
            self.validity.support == ANYHOW or self.generator.tumble == 0,
            f"validity.support={self.validity.support} throws away the bodies that "
            f"generator.tumble={self.generator.tumble} turns over: nothing carries them.",
            f"Set generator.tumble=0, or validity.support={ANYHOW:.0f}.",
        )
        require(
            self.field.kind != "anerf" or self.generator.light.holds,
            "field=anerf holds the light that people were filmed in: generator.light cannot turn "
            "it or change its contrast.",
            "Set generator.light.turn=0 and generator.light.contrast_low and _high to 1.",
        )
        most = self.runtime.trainers
        counts = range(min(self.runtime.min_train_workers, most) or most, most + 1)
        uneven = [n for n in counts if self.training.estimator_batch_size % (2 * n)]
        require(
            not uneven,
            f"training.estimator_batch_size={self.training.estimator_batch_size} cannot be divided "
            f"into two halves for {', '.join(map(str, uneven))} train worker(s).",
            f"Use a multiple of {2 * math.lcm(*counts)}.",
        )
        require(
            self.n_trials >= 2,
            f"n_trials={self.n_trials} leaves nothing to compare the default with.",
            "Use at least 2; a few times the number of searched settings is better.",
        )
        require(
            not self.tune.space or self.tune.grace_rounds <= self.training.rounds,
            f"tune.grace_rounds={self.tune.grace_rounds} is more than training.rounds="
            f"{self.training.rounds}: no trial could be stopped.",
            "Lower tune.grace_rounds, or use tune.scheduler=fifo.",
        )
        check_space(self, self.tune.space)


def settings_that_decide(config: RunConfig) -> dict[str, Any]:
    """What numbers depend on: all settings but those that say where things lie and are done."""
    settings = asdict(config)
    for name in ("run_dir", "resume", "run", "out", "runtime"):
        del settings[name]
    return settings
