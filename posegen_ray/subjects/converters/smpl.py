"""What a converter needs of SMPL: the body, and where SMPL data sets have their origin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body import load_body
from posegen_ray.body.model import BodyModel
from posegen_ray.config import BodyConfig

GENDERS = ("neutral", "female", "male")


@dataclass(frozen=True)
class Smpl:
    """The user's SMPL of one gender."""

    config: BodyConfig
    body: BodyModel
    origin: Tensor  # [3] of our body, in SMPL's own coordinates

    def rest_pelvis(
        self,
        shape: np.ndarray,  # [10]
    ) -> Tensor:  # [3] float64, metres
        """J0: the pelvis of the shaped T-pose, in SMPL's own coordinates.

        SMPL puts the pelvis at J0 + trans, whatever the pose.
        """
        rest = self.body.rest_joints(torch.from_numpy(shape).float()[None])[0, 0]
        return rest.double() + self.origin.double()


def load_smpl(config: BodyConfig, gender: str) -> Smpl:
    """SMPL of a gender, from config.smpl_folder.

    Raises:
        AssetError: its file is missing or damaged.
    """
    from posegen_ray.body.smpl import smpl_origin

    config = replace(config, name="smpl", gender=gender)
    body = load_body(config)
    return Smpl(config, body, smpl_origin(config.smpl_folder, gender))
