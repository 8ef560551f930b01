"""An estimator that can only be asked: any function from images to joints.

No gradient leads from its answer to the image, so the generator learns from it by score functions
(`feedback.estimator_gradient`); fine-tuning is left to whoever has its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen_ray.assets import fetch
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.errors import AssetError, ConfigError
from posegen_ray.estimators.base import Estimate, PoseEstimator
from posegen_ray.estimators.blazepose import NUM_LANDMARKS, WORLD_LANDMARKS, obvious_joint_map
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.target import import_target

# images [B, 3, S, S] RGB in [0, 1] -> joints [B, J, 3] metres, crop-camera axes
AnswerFn = Callable[[Tensor], Tensor | np.ndarray]


class BlackBox(PoseEstimator):
    """Wraps a function; its answer is taken as it is, without gradients.

    Args:
        function: images [B, 3, S, S], RGB in [0, 1] on the CPU -> joints [B, J, 3] in metres, in
            the axes of the crop's camera (x right, y down, z forward); anywhere in depth.
        joint_names: J names of joints, as in `posegen_ray.body.skeleton`; training and the tests of
            a run need the 12 limb joints.
        crop: what the function wants to see.
        name: for tables.
    """

    differentiable = False

    def __init__(
        self,
        function: AnswerFn,
        joint_names: tuple[str, ...],
        crop: CropSpec,
        name: str = "black box",
    ) -> None:
        super().__init__()
        self.function = function
        self.joint_names = joint_names
        self.crop = crop
        self.name = name

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,  # [B, 3, S, S] RGB in [0, 1]
    ) -> Estimate:
        """The function's joints.

        Raises:
            ValueError: it answers another shape.
        """
        joints = torch.as_tensor(self.function(images.detach().cpu())).to(images)
        expected = (len(images), len(self.joint_names), 3)
        if joints.shape != expected:
            raise ValueError(
                f"{self.name} answers {tuple(joints.shape)} for {len(images)} images; with its "
                f"{len(self.joint_names)} joint_names it should be {expected}."
            )
        return Estimate(joints)


def load_black_box(target: str, joint_names: Sequence[str], crop: CropSpec) -> BlackBox:
    """The function that `target` names, as an estimator of that name.

    Args:
        target: module:function.
        joint_names: J names, see `BlackBox`; none: the 12 limb joints.

    Raises:
        ConfigError: there is no such function.
    """
    return BlackBox(find_function(target), tuple(joint_names) or LIMB_JOINT_NAMES, crop, target)


def find_function(target: str) -> AnswerFn:
    """Imports the module of `module:function` and finds the function in it.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    function = import_target(target, "joints_of")
    if not callable(function):
        raise ConfigError(
            f"estimator.target={target!r} is a {type(function).__name__}, not a function.",
            "Name a function from images [B, 3, S, S] to joints [B, J, 3].",
        )
    return function  # type: ignore[no-any-return]


def litert_blazepose(
    images: Tensor,  # [B, 3, 256, 256] RGB in [0, 1]
) -> np.ndarray:  # [B, 12, 3] metres
    """BlazePose full by Google's own runtime: the network of `BlazePose`, without gradients.

    Raises:
        AssetError: the package ai-edge-litert is not installed, or the file cannot be fetched.
    """
    runtime = _litert()
    entry, world = runtime.get_input_details()[0], runtime.get_output_details()[WORLD_LANDMARKS]
    joint_map = obvious_joint_map().numpy()
    rows = []
    for image in images:
        runtime.set_tensor(entry["index"], image.permute(1, 2, 0)[None].numpy())
        runtime.invoke()
        landmarks = runtime.get_tensor(world["index"]).reshape(-1, 3)[:NUM_LANDMARKS]
        rows.append(joint_map @ landmarks)
    return np.stack(rows)


@functools.cache
def _litert() -> Any:
    """This process's runtime, with the network in it."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise AssetError(
            "BlazePose as a black box needs the package ai-edge-litert.",
            "Install it: pip install ai-edge-litert",
        ) from error
    runtime = Interpreter(str(fetch("blazepose-full")), num_threads=1)
    runtime.allocate_tensors()
    return runtime
