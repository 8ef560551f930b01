"""Settings of the estimator and its fine-tuning (conf/estimator)."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require


@dataclass
class EstimatorConfig:
    """The pre-trained pose estimator (conf/estimator)."""

    kind: str = "blazepose"
    variant: str = "full"  # lite | full | heavy

    def __post_init__(self) -> None:
        require(
            self.variant in ("lite", "full", "heavy"),
            f"estimator.variant={self.variant!r} is not a BlazePose.",
            "Choose lite (fastest), full (default) or heavy.",
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

    def __post_init__(self) -> None:
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
