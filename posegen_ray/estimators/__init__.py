"""Pose estimators: the networks that samples are made for, and their fine-tuning."""

from posegen_ray.estimators.base import Estimate, PoseEstimator, limb_joints, predict
from posegen_ray.estimators.crop import CropJitter, CropSpec, crop_image, estimator_crop
from posegen_ray.estimators.registry import load_estimator

__all__ = [
    "CropJitter",
    "CropSpec",
    "Estimate",
    "PoseEstimator",
    "crop_image",
    "estimator_crop",
    "limb_joints",
    "load_estimator",
    "predict",
]
