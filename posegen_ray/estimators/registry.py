"""Estimators by name.

The modules of SPIN, HybrIK and the compact HMR are imported when one is loaded: torchvision and
timm take 200 MB of memory, which every process would pay.
"""

from __future__ import annotations

from pathlib import Path

from posegen_ray.assets import cache_folder
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.body.smpl_files import LICENCE, find_smpl_file, read_smpl_file
from posegen_ray.config import (
    BLACK_BOX,
    COMPACT,
    CUSTOM,
    ESTIMATORS,
    EstimatorConfig,
    FineTuneConfig,
)
from posegen_ray.errors import AssetError, CheckpointError, ConfigError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.estimators.blackbox import find_function, load_black_box
from posegen_ray.estimators.blazepose import BlazePose, load_blazepose
from posegen_ray.estimators.crop import COMPACT_CROP, HYBRIK_CROP, SPIN_CROP, CropSpec, PictureCrop
from posegen_ray.estimators.custom import check_cuts, find_estimator, load_custom

_CROPS: dict[str, CropSpec] = {
    "blazepose": BlazePose.crop,
    COMPACT: COMPACT_CROP,
    "spin": SPIN_CROP,
    "hybrik_res34": HYBRIK_CROP,
    "hybrik_w48": HYBRIK_CROP,
}
_SOURCES = {
    "spin": "SPIN's comes from https://github.com/nkolot/SPIN (research only)",
    "hybrik_res34": "HybrIK's come from https://github.com/Jeff-sjtu/HybrIK (see its licence)",
    "hybrik_w48": "HybrIK's come from https://github.com/Jeff-sjtu/HybrIK (see its licence)",
}


def load_estimator(
    kind: str,
    checkpoint: str | Path | None = None,
    smpl: str | Path | None = None,
    *,
    variant: str = "full",
    flip_test: bool = True,
) -> PoseEstimator:
    """A pre-trained estimator, for evaluation; its parameters are frozen.

    Args:
        kind: blazepose | compact_hmr | spin | hybrik_res34 | hybrik_w48.
        checkpoint: the published file (not for blazepose, which is fetched); of compact_hmr the
            folder that `posegen pretrain` wrote, None: where it writes unless told.
        smpl: the folder of SMPL's files; hybrik_* need it, spin gives no joints without it.
        variant: of blazepose: lite | full | heavy.
        flip_test: hybrik_*: also ask for the mirrored image.

    Raises:
        ConfigError: there is no such kind.
        AssetError: a file is missing or cannot be fetched.
        CheckpointError: the checkpoint is missing, damaged, or another estimator's.
    """
    _check(kind)
    if kind in (BLACK_BOX, CUSTOM):
        raise ConfigError(
            f"estimator={kind} has no file to load: it is your own code.",
            "Wrap your function: posegen_ray.estimators.BlackBox(function, joint_names, crop); of "
            "a class of your own make an instance.",
        )
    if kind == "blazepose":
        return load_blazepose(variant)
    if kind == COMPACT:
        from posegen_ray.estimators.compact_hmr import load_compact_hmr

        return load_compact_hmr(_pretrained(checkpoint))
    check_files(kind, checkpoint, smpl)
    assert checkpoint is not None
    if kind == "spin":
        from posegen_ray.estimators.spin import load_spin

        if smpl is None:
            return load_spin(Path(checkpoint))
        from posegen_ray.body.smpl import load_smpl_body, smpl_origin  # needs smplx

        return load_spin(Path(checkpoint), load_smpl_body(smpl), smpl_origin(smpl))
    from posegen_ray.estimators.hybrik import load_hybrik

    assert smpl is not None
    found = find_smpl_file(smpl, "neutral")
    assert found is not None
    return load_hybrik(kind, Path(checkpoint), read_smpl_file(found), flip_test)


def build_estimator(config: EstimatorConfig) -> PoseEstimator:
    """The pre-trained estimator that the configuration names.

    Raises:
        as `load_estimator`; ConfigError also for the user's own code that cannot be imported.
    """
    if config.kind == BLACK_BOX:
        return load_black_box(config.target, config.joint_names, crop_spec(config))
    if config.kind == CUSTOM:
        return load_custom(config.target, config.checkpoint or None)
    return load_estimator(
        config.kind,
        config.checkpoint or None,
        config.smpl_folder or None,
        variant=config.variant,
        flip_test=config.flip_test,
    )


def check_files(kind: str, checkpoint: str | Path | None, smpl: str | Path | None) -> None:
    """Whether the user's files for an estimator are there; opens none of them.

    Raises:
        CheckpointError: no checkpoint, with where it comes from.
        AssetError: no SMPL file, with where it is licensed.
    """
    if kind == COMPACT:
        _pretrained(checkpoint)
    if kind not in _SOURCES:
        return
    if checkpoint is None or not Path(checkpoint).is_file():
        said = "is not named" if checkpoint is None else f"{str(checkpoint)!r} is no file"
        raise CheckpointError(
            f"The checkpoint of estimator={kind} {said}.",
            f"Set estimator.checkpoint=FILE. {_SOURCES[kind]}.",
        )
    if smpl is None and kind == "spin":
        return
    if not smpl or find_smpl_file(smpl, "neutral") is None:
        said = "is not set" if not smpl else f"{str(smpl)!r} holds no SMPL_NEUTRAL.pkl (.npz)"
        raise AssetError(
            f"estimator={kind} needs SMPL's files, but estimator.smpl_folder {said}.",
            f"{LICENCE} Set estimator.smpl_folder=FOLDER (or body.smpl_folder, its default).",
        )


def _pretrained(checkpoint: str | Path | None) -> Path:
    """The folder of the compact HMR; raises CheckpointError if there is none."""
    folder = Path(checkpoint) if checkpoint else cache_folder() / COMPACT
    if not (folder / "manifest.json").is_file():
        raise CheckpointError(
            f"There is no pre-trained compact HMR in {folder}.",
            "Make one: posegen pretrain (minutes), or set estimator.checkpoint to its folder.",
        )
    return folder


def check_estimator(
    config: EstimatorConfig, settings: FineTuneConfig, fine_tuned: bool = False
) -> None:
    """Whether the estimator can take part in training and tests, which measure joints.

    Args:
        settings: how it is fine-tuned, between the rounds of training, too.
        fine_tuned: arms are fine-tuned.

    Raises:
        ConfigError, CheckpointError, AssetError: as `build_estimator`; also for SPIN without SMPL,
            for a black box that lacks limb joints or is to be fine-tuned, and for a class of the
            user's own that lacks a cut which `settings` name.
    """
    _check(config.kind)
    if config.kind == CUSTOM:
        check_cuts(config.target, settings)
    if config.kind == BLACK_BOX:
        find_function(config.target)
        missing = [name for name in LIMB_JOINT_NAMES if name not in config.joint_names]
        if config.joint_names and missing:
            raise ConfigError(
                f"estimator.joint_names lacks {', '.join(missing)}.",
                f"Training and its tests need {', '.join(LIMB_JOINT_NAMES)}.",
            )
        if fine_tuned:
            raise ConfigError(
                "estimator=black_box cannot be fine-tuned here: only its answers are known.",
                "Use `posegen train`, then `posegen generate run=…` for the images, and train it "
                "where its weights are; `posegen demo experiment.arms=[baseline]` measures it "
                "(docs/black-box.md).",
            )
    check_files(config.kind, config.checkpoint or None, config.smpl_folder)


def crop_spec(config: EstimatorConfig) -> CropSpec:
    """The crop that the estimator wants, without loading it."""
    _check(config.kind)
    if config.kind == BLACK_BOX:
        if config.crop != "box":
            return CropSpec(config.input_size, config.crop, config.crop_scale)
        picture = PictureCrop(config.crop_scale, about_person=0.75 * config.crop_scale)
        return CropSpec(config.input_size, config.crop, config.crop_scale, picture=picture)
    if config.kind == CUSTOM:
        return find_estimator(config.target).crop
    return _CROPS[config.kind]


def _check(kind: str) -> None:
    if kind not in ESTIMATORS:
        raise ConfigError(
            f"estimator.kind={kind!r} is not an estimator.",
            f"Choose one of: {', '.join(ESTIMATORS)}.",
        )
