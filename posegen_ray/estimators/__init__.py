"""Pose estimators: the networks that samples are made for, and their fine-tuning."""

from posegen_ray.estimators.base import Estimate, PoseEstimator, limb_joints, predict
from posegen_ray.estimators.blackbox import BlackBox
from posegen_ray.estimators.crop import CropSpec, crop_image, estimator_crop
from posegen_ray.estimators.registry import build_estimator, load_estimator

__all__ = [
    "BlackBox",
    "CropSpec",
    "Estimate",
    "PoseEstimator",
    "build_estimator",
    "crop_image",
    "estimator_crop",
    "limb_joints",
    "load_estimator",
    "predict",
]
