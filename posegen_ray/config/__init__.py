"""Every setting, its type and its default; past this module nobody sees a DictConfig.

YAML under conf/ chooses, these dataclasses decide: a misspelt key or a wrong type fails while the
configuration is composed, and rules between fields are checked in `__post_init__`.

One module for each part of the package; `run` puts them together.
"""

from __future__ import annotations

from posegen_ray.config.body import (
    BodyConfig,
)
from posegen_ray.config.datasets import (
    JOINT_SETS,
    KEYPOINTS,
    PUBLIC_SETS,
    DatasetConfig,
    PhotographsConfig,
)
from posegen_ray.config.estimators import (
    BLACK_BOX,
    COMPACT,
    CUSTOM,
    ESTIMATORS,
    EstimatorConfig,
    FineTuneConfig,
    FineTuneStageConfig,
    LossConfig,
    PretrainConfig,
)
from posegen_ray.config.experiment import (
    ARMS,
    EvaluationConfig,
    ExperimentConfig,
    TrainingConfig,
)
from posegen_ray.config.export import (
    EXPORT_FORMATS,
    ExportConfig,
)
from posegen_ray.config.generation import (
    ANYHOW,
    CameraRangeConfig,
    ConditionConfig,
    DiscriminatorConfig,
    FeedbackConfig,
    GeneratorConfig,
    LightRangeConfig,
    ValidityConfig,
)
from posegen_ray.config.motion import (
    MotionConfig,
)
from posegen_ray.config.rules import (
    require,
)
from posegen_ray.config.run import (
    RunConfig,
    settings_that_decide,
)
from posegen_ray.config.runtime import (
    RenderServerConfig,
    RoleResources,
    RuntimeConfig,
    StreamConfig,
)
from posegen_ray.config.subjects import (
    CAPTURE_FORMATS,
    AnerfConfig,
    ConvertConfig,
    FieldConfig,
    FitConfig,
    RegionConfig,
    RendererConfig,
    SubjectsConfig,
)
from posegen_ray.config.tune import (
    ParameterConfig,
    TuneConfig,
    setting,
    with_settings,
)

__all__ = [
    "ARMS",
    "AnerfConfig",
    "BLACK_BOX",
    "COMPACT",
    "CUSTOM",
    "BodyConfig",
    "CAPTURE_FORMATS",
    "ANYHOW",
    "CameraRangeConfig",
    "ConditionConfig",
    "LightRangeConfig",
    "ConvertConfig",
    "DatasetConfig",
    "DiscriminatorConfig",
    "ESTIMATORS",
    "EXPORT_FORMATS",
    "EstimatorConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "ExportConfig",
    "FeedbackConfig",
    "FieldConfig",
    "FineTuneConfig",
    "PhotographsConfig",
    "PretrainConfig",
    "FineTuneStageConfig",
    "FitConfig",
    "GeneratorConfig",
    "LossConfig",
    "JOINT_SETS",
    "KEYPOINTS",
    "MotionConfig",
    "PUBLIC_SETS",
    "ParameterConfig",
    "RegionConfig",
    "RenderServerConfig",
    "RendererConfig",
    "RoleResources",
    "RunConfig",
    "RuntimeConfig",
    "StreamConfig",
    "SubjectsConfig",
    "TrainingConfig",
    "TuneConfig",
    "ValidityConfig",
    "require",
    "settings_that_decide",
    "setting",
    "with_settings",
]
