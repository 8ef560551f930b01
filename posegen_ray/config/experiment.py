"""Settings of training, comparison and evaluation (conf/experiment)."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require


@dataclass
class EvaluationConfig:
    """Intervals and the report page."""

    bootstrap: int = 4000  # draws behind each interval
    clusters: int = 8  # pose clusters of the failure atlas
    hardest: int = 8  # samples drawn with skeletons, those the baseline fails on most
    generated: int = 24  # pictures of generated samples

    def __post_init__(self) -> None:
        require(
            self.bootstrap >= 100,
            f"evaluation.bootstrap={self.bootstrap} is too few draws for a 95 % interval.",
            "Set evaluation.bootstrap to 100 or more (4000 takes well under a second).",
        )
        for name in ("clusters", "hardest", "generated"):
            require(
                getattr(self, name) >= 1,
                f"evaluation.{name}={getattr(self, name)} leaves that part of the report empty.",
                f"Set evaluation.{name} to 1 or more.",
            )


PRECISIONS = ("fp32", "bf16")
ROUND_METRICS = ("validation_mpjpe_mm", "estimator_loss")  # smaller is better


@dataclass
class TrainingConfig:
    """Adversarial training: rounds of generator steps, then estimator updates."""

    rounds: int = 4
    steps_per_round: int = 30  # adversarial steps; the estimator is frozen during them
    batch_size: int = 8  # proposals a step and worker
    estimator_steps: int = 6  # updates of the live estimator between rounds
    estimator_batch_size: int = 16  # half generated, half source images
    # whom the generator attacks: the estimator as it comes (pretrained); after fine-tuning on the
    # source half (source); or on that and the random images of its own half (random, with
    # generator.share below 1). What those cure needs no generator
    attack: str = "random"
    calibration_images: int = 64  # on whose median error the band is stated
    max_skipped_steps: int = 10  # so many non-finite steps in a row stop the run
    log_every: int = 5
    # generator: so many parts of a batch are rendered and judged one after the other; estimator:
    # as many parts of a batch make one update. The same numbers, in less memory
    accumulate: int = 1
    plain_backgrounds: bool = False  # one colour behind each training image, instead of pictures
    precision: str = "fp32"  # fp32 | bf16: what the estimator computes in (rendering never)
    storage: str = ""  # folder or URL (s3://bucket/path) of the checkpoints; empty: the run folder
    keep_checkpoints: int = 2  # the newest ones, and beside them
    best_metric: str = "validation_mpjpe_mm"  # the one in which this is smallest; empty: none

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "steps_per_round",
            "batch_size",
            "estimator_batch_size",
            "calibration_images",
            "log_every",
            "max_skipped_steps",
        ):
            require(
                getattr(self, name) >= 1,
                f"training.{name}={getattr(self, name)} must be at least 1.",
                f"Set training.{name} to a positive number.",
            )
        require(
            self.estimator_steps >= 0,
            f"training.estimator_steps={self.estimator_steps} is negative.",
            "Set it to 0 to keep the estimator frozen during training.",
        )
        require(
            1 <= self.accumulate <= self.batch_size,
            f"training.accumulate={self.accumulate} parts cannot be made of "
            f"training.batch_size={self.batch_size}.",
            "Use 1 (all at once) to training.batch_size (one by one).",
        )
        require(
            self.attack in ("pretrained", "source", "random"),
            f"training.attack={self.attack!r} is no estimator.",
            "Choose pretrained, source or random.",
        )
        require(
            self.precision in PRECISIONS,
            f"training.precision={self.precision!r} is unknown.",
            f"Choose one of {', '.join(PRECISIONS)}.",
        )
        require(
            self.keep_checkpoints >= 1,
            f"training.keep_checkpoints={self.keep_checkpoints} leaves nothing to go on from.",
            "Keep at least 1; with 2 a broken one is no loss.",
        )
        require(
            self.best_metric in ("", *ROUND_METRICS),
            f"training.best_metric={self.best_metric!r} is not reported with checkpoints.",
            f"Choose one of {', '.join(ROUND_METRICS)}, or nothing.",
        )
        require(
            self.estimator_batch_size % 2 == 0,
            f"training.estimator_batch_size={self.estimator_batch_size} is odd.",
            "Half of each batch is generated and half is source data: use an even number.",
        )


# what the other half of an arm's images is; arms beyond these are variants of PoseGen
ARMS = (
    "baseline",  # no fine-tuning
    "source_adapted",  # source
    "random",  # broad random poses and cameras
    "random_double",  # the same, twice as many
    "random_more",  # the same, as many as PoseGen renders in all
    "real_poses",  # real poses, random cameras
    "hard_mined",  # of as many random ones as PoseGen renders, the hardest of its band
    "no_feedback",  # the generator, trained to be plausible only
    "posegen",
)
# what a run folder calls other things that it keeps (run.py, arm_images.py)
RESERVED = (
    "generator",
    "adapted",
    "reference",
    "joint_map",
    "test",
    "source_half",
    "reference_half",
)
# the first part of settings that a variant of PoseGen may change: what makes its images
VARIED = ("generator", "feedback", "discriminator", "training", "validity", "subject")


@dataclass
class ExperimentConfig:
    """A comparison of fine-tuning data (conf/experiment): arms, seeds, budgets."""

    name: str = "demo"
    seeds: list[int] = field(default_factory=lambda: [0])
    arms: list[str] = field(
        default_factory=lambda: ["baseline", "source_adapted", "random", "posegen"]
    )
    # PoseGen with other settings, as arms of their own: name -> overrides, as on the command line
    variants: dict[str, list[str]] = field(default_factory=dict)
    images_per_arm: int = 1200  # half of them are the source images that all arms share
    block_size: int = 24  # samples are drawn in blocks: the unit of work and of seeding
    joint_map_images: int = 240  # source images that the joint map is fitted on
    test_source_images: int = 300
    test_wild_images: int = 300
    test_view_images: int = 0  # source poses, near and tilted cameras
    test_motion_images: int = 0  # unseen clips, eye level
    test_person_images: int = 0  # source poses, eye level, MakeHuman's people
    test_ood_images: int = 480  # unseen clips, both kinds of views
    validation_images: int = 96  # watched during training; never a test image
    # test, or validation: to choose settings on people and clips that no test shows. It has as many
    # images of source poses as test_source_images, of unseen clips as test_ood_images
    judge_on: str = "test"

    def __post_init__(self) -> None:
        require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            f"experiment.seeds={list(self.seeds)} must be distinct and not empty.",
            "For example experiment.seeds=[0,1,2].",
        )
        for name, overrides in self.variants.items():
            require(
                name.isidentifier() and name not in (*ARMS, *RESERVED) and "_random" not in name,
                f"experiment.variants: {name!r} cannot name an arm.",
                f"Use letters, digits and _, without _random, and none of "
                f"{', '.join((*ARMS, *RESERVED))}.",
            )
            wrong = [o for o in overrides if o.split("=")[0].split(".")[0] not in VARIED]
            require(
                not wrong,
                f"experiment.variants.{name} changes {''.join(wrong[:1])!r}, which all arms share.",
                f"A variant may change {', '.join(VARIED)}.",
            )
        unknown = sorted(set(self.arms) - set(ARMS) - set(self.variants))
        require(
            not unknown,
            f"experiment.arms has unknown arms {unknown}.",
            f"Choose from {', '.join((*ARMS, *self.variants))}, or describe {unknown[:1]} in "
            "experiment.variants.",
        )
        require(
            len(set(self.arms)) == len(self.arms),
            f"experiment.arms={list(self.arms)} names an arm twice.",
            "Name each arm once.",
        )
        require(
            "baseline" in self.arms,
            "experiment.arms lacks 'baseline', which every other arm is compared with.",
            "Add baseline to experiment.arms.",
        )
        require(
            self.images_per_arm >= 2,
            f"experiment.images_per_arm={self.images_per_arm} has no two halves.",
            "Set experiment.images_per_arm to 2 or more.",
        )
        for name in (
            "block_size",
            "joint_map_images",
            "test_source_images",
            "test_wild_images",
            "test_ood_images",
            "validation_images",
        ):
            require(
                getattr(self, name) >= 1,
                f"experiment.{name}={getattr(self, name)} must be at least 1.",
                f"Set experiment.{name} to a positive number.",
            )
        require(
            self.judge_on in ("test", "validation"),
            f"experiment.judge_on={self.judge_on!r} is no set of images.",
            "Choose test, or validation while settings are being chosen.",
        )
        for name in ("test_view_images", "test_motion_images", "test_person_images"):
            require(
                getattr(self, name) >= 0,
                f"experiment.{name}={getattr(self, name)} is negative.",
                f"Set experiment.{name}=0 to do without that test set.",
            )
