"""Settings of the estimator and its fine-tuning (conf/estimator)."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require

BLACK_BOX = "black_box"
CUSTOM = "custom"
COMPACT = "compact_hmr"
ESTIMATORS = ("blazepose", COMPACT, "spin", "hybrik_res34", "hybrik_w48", CUSTOM, BLACK_BOX)


@dataclass
class EstimatorConfig:
    """The pre-trained pose estimator (conf/estimator)."""

    kind: str = "blazepose"  # one of ESTIMATORS
    variant: str = "full"  # blazepose: lite | full | heavy
    # the published file of spin, hybrik_*; compact_hmr: the folder that `posegen pretrain` wrote
    # (empty: where it writes unless told); custom: what its class is given
    checkpoint: str = ""
    smpl_folder: str = ""  # SMPL's files: hybrik_* need them, and spin for its joints
    flip_test: bool = True  # hybrik_*: also ask for the mirrored image; twice the time
    target: str = ""  # custom (docs/estimators.md): module:Class; black_box: module:function
    # black_box (docs/black-box.md)
    joint_names: list[str] = field(default_factory=list)  # of its joints; none: the 12 limb joints
    input_size: int = 256  # edge of the images that it wants, pixels
    crop: str = "box"  # what they show: box | upright | aligned
    crop_scale: float = 1.2  # the crop's side; see estimators.crop.CropSpec

    def __post_init__(self) -> None:
        require(
            self.variant in ("lite", "full", "heavy"),
            f"estimator.variant={self.variant!r} is not a BlazePose.",
            "Choose lite (fastest), full (default) or heavy.",
        )
        require(
            self.crop in ("box", "upright", "aligned")
            and self.crop_scale > 0
            and self.input_size >= 8,
            f"estimator crop={self.crop!r}, crop_scale={self.crop_scale}, "
            f"input_size={self.input_size} is no crop.",
            "Choose box, upright or aligned, a positive scale, and a size in pixels.",
        )


@dataclass
class FineTuneStageConfig:
    """One stage of fine-tuning: what lies before `cut` is frozen, its output is kept."""

    cut: str = "late"  # one of the estimator's cuts
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-4
    warm_up: int = 20  # steps

    def __post_init__(self) -> None:
        require(
            self.steps >= 0 and self.batch_size >= 1 and self.warm_up >= 0,
            f"fine-tuning stage {self.cut!r}: steps={self.steps}, batch_size={self.batch_size}, "
            f"warm_up={self.warm_up} must not be negative.",
            "steps=0 skips the stage; batch_size must be at least 1.",
        )
        require(
            self.learning_rate > 0,
            f"fine-tuning stage {self.cut!r}: learning_rate={self.learning_rate} must be positive.",
            "The default is 1e-4 for the late and 3e-5 for the early stage.",
        )


@dataclass
class LossConfig:
    """Weights of the fine-tuning losses; what an estimator does not answer costs nothing."""

    joints: float = 1.0  # mean absolute error of the 12 limb joints, metres
    joints_2d: float = (
        0.0  # the same in the crop, by the estimator's own camera; shares of its side
    )
    rotations: float = 0.0  # mean squared error of the elements of the 24 rotation matrices
    shape: float = 0.0  # mean squared error of SMPL's shape; only where people are body=smpl

    def __post_init__(self) -> None:
        weights = (self.joints, self.joints_2d, self.rotations, self.shape)
        require(
            min(weights) >= 0 and max(weights) > 0,
            f"finetune.losses {weights} are negative, or all zero.",
            "Give each a weight of 0 or more, and at least one more than 0.",
        )


@dataclass
class FineTuneConfig:
    """Fine-tuning of the estimator on a fixed set of samples (conf/estimator)."""

    stages: list[FineTuneStageConfig] = field(
        default_factory=lambda: [
            FineTuneStageConfig("late", 400, 32, 1e-4),
            FineTuneStageConfig("early", 250, 16, 3e-5),
        ]
    )
    interpolation: float = 0.7  # 0: the pre-trained weights, 1: the fine-tuned ones (WiSE-FT)
    mirrored: bool = True  # also train on left/right mirrored copies
    augmented_copies: int = 0  # turned, scaled and recoloured copies of each image
    max_feature_mb: int = 1500  # kept features
    online_learning_rate: float = 3e-5  # updates between adversarial rounds
    online_cut: str = "late"
    losses: LossConfig = field(default_factory=LossConfig)
    source_share: float = -1.0  # of source images in each batch; -1: as many as there are
    update_batch_norm: bool = False  # running statistics of BatchNorm layers; off: frozen
    ema: float = 0.0  # offline: keep the exponential moving average of the weights; 0: off
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.source_share == -1 or 0 <= self.source_share <= 1,
            f"fine-tuning source_share={self.source_share} is not between 0 and 1.",
            "Use -1 to take source and generated images as often as there are of each.",
        )
        require(
            0 <= self.ema < 1 and self.max_gradient_norm > 0,
            f"fine-tuning ema={self.ema}, max_gradient_norm={self.max_gradient_norm} are no good.",
            "ema is 0 (off) or a decay below 1, such as 0.99; max_gradient_norm is positive.",
        )
        require(
            0 <= self.interpolation <= 1,
            f"fine-tuning interpolation={self.interpolation} is not between 0 and 1.",
            "0 keeps the pre-trained weights, 1 takes the fine-tuned ones; 0.7 is the default.",
        )
        require(
            self.augmented_copies >= 0 and self.max_feature_mb >= 1,
            "fine-tuning augmented_copies and max_feature_mb must not be negative.",
            "Use augmented_copies=0 for none; max_feature_mb=1500 suits 8 GB of memory.",
        )
        require(
            self.online_learning_rate > 0,
            f"fine-tuning online_learning_rate={self.online_learning_rate} must be positive.",
            "The default is 3e-5.",
        )


@dataclass
class PretrainConfig:
    """Pre-training of estimator=compact_hmr on source images (`posegen pretrain`)."""

    images: int = 4000  # source images
    validation_images: int = 240  # of source poses; as many of unseen clips
    finetune: FineTuneConfig = field(
        default_factory=lambda: FineTuneConfig(
            stages=[
                FineTuneStageConfig("late", 1500, 64, 1e-3),
                FineTuneStageConfig("early", 400, 32, 3e-4),
            ],
            interpolation=1.0,
            losses=LossConfig(joints=1.0, joints_2d=1.0, rotations=0.1),
        )
    )

    def __post_init__(self) -> None:
        require(
            self.images >= 1 and self.validation_images >= 1,
            f"pretrain.images={self.images}, validation_images={self.validation_images} must be "
            "at least 1.",
            "The defaults are 4000 and 240.",
        )
