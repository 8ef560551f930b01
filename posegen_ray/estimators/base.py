"""What a pose estimator is to the rest of the package.

To bring one: subclass `PoseEstimator`, set `joint_names` and `crop`, implement `forward`, and name
the class: `estimator=custom estimator.target=module:Class` (docs/estimators.md). That is enough to
be fooled (the feedback flows through `forward` into the image), evaluated, and fine-tuned as a
whole. To be fine-tuned fast, also name `cuts` and implement `stem`, `head` and `tail_parameters`:
what lies before a cut stays frozen, its output is computed once per image and kept.

Knows nothing of how images are made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.errors import ConfigError
from posegen_ray.estimators.crop import CropSpec

_LEFT_HIP = LIMB_JOINT_NAMES.index("left_hip")
_RIGHT_HIP = LIMB_JOINT_NAMES.index("right_hip")

# Cuts, from the first to the last. Before the first layer: nothing is frozen, the features are the
# images; in the middle; before the last layers.
WHOLE, EARLY, LATE = "image", "early", "late"


@dataclass(frozen=True)
class Estimate:
    """An estimator's answer, in crop-camera axes (x right, y down, z forward).

    An estimator fills in what it has; the rest is None.
    """

    joints: Tensor | None  # [B, J, 3] metres, in the order of the estimator's joint_names
    rotations: Tensor | None = None  # [B, 24, 3, 3] local; the root's is in crop-camera axes
    shape: Tensor | None = None  # [B, 10] SMPL's
    camera: Tensor | None = None  # [B, C] as the estimator defines it
    joints_2d: Tensor | None = None  # [B, J, 2] pixels of the crop, as its own camera sees `joints`

    def full(self) -> Estimate:
        """The same; what autocast left in bf16 is fp32."""

        def widened(part: Tensor | None) -> Tensor | None:
            return part.float() if part is not None and part.dtype == torch.bfloat16 else part

        return Estimate(*map(widened, vars(self).values()))


class PoseEstimator(nn.Module, ABC):
    """Images -> poses; differentiable in the image and in its parameters."""

    name: str  # for tables, e.g. "blazepose-full"
    joint_names: tuple[str, ...]  # of Estimate.joints
    crop: CropSpec  # the crop that it was trained for
    differentiable: bool = True  # whether gradients flow from its answer to the image
    cuts: tuple[str, ...] = (WHOLE,)  # where it can be split, from the first to the last

    @property
    def looks_twice(self) -> bool:
        """Whether `forward` does more than `head` of `stem`, such as a flip test."""
        return False

    @property
    def input_size(self) -> int:
        """Pixels; images are input_size x input_size."""
        return self.crop.size

    @abstractmethod
    def forward(
        self,
        images: Tensor,  # [B, 3, S, S] RGB in [0, 1]
    ) -> Estimate:
        """The estimate for each image."""

    def in_picture(
        self,
        images: Tensor,  # [B, 3, S, S] RGB in [0, 1]
        offset: Tensor,  # [B, 2] picture's middle -> crop's middle, as a share of the crop's side
    ) -> Estimate:
        """As `forward`, told where in its picture each crop lies.

        For estimators that place the person before the picture's camera; others do not ask.
        """
        return self(images)  # type: ignore[no-any-return]

    def stem(
        self,
        images: Tensor,  # [B, 3, S, S], or the features at `start`
        cut: str,
        start: str = WHOLE,
    ) -> Tensor:  # [B, ...] features
        """What the part between `start` (an earlier cut, or the same) and the cut makes of it."""
        self.check_cut(cut)
        self.check_cut(start)
        return images

    def head(
        self,
        features: Tensor,  # [B, ...] from `stem` at the same cut
        cut: str,
    ) -> Estimate:
        """`forward(images)` = `head(stem(images, cut), cut)`, unless it `looks_twice`."""
        self.check_cut(cut)
        return self(features)  # type: ignore[no-any-return]

    def tail_parameters(self, cut: str) -> list[nn.Parameter]:
        """The parameters that `head` uses at this cut."""
        self.check_cut(cut)
        return list(self.parameters())

    def set_joint_map(
        self,
        matrix: Tensor,  # [12, L]
    ) -> None:
        """From now on, makes the limb joints from the estimator's own L landmarks.

        For estimators whose landmarks are not the skeleton's joints; others refuse.
        """
        raise ValueError(f"{self.name} answers the skeleton's joints and takes no joint map.")

    def check_cut(self, cut: str) -> None:
        """Raises ConfigError for a cut that the estimator does not have."""
        if cut not in self.cuts:
            raise ConfigError(
                f"{self.name} has no cut {cut!r}.",
                f"Choose one of {', '.join(self.cuts)} (finetune.stages, finetune.online_cut).",
            )


def limb_joints(
    estimate: Estimate,
    joint_names: tuple[str, ...],
) -> Tensor:  # [B, 12, 3] metres, mid-hip at 0
    """The 12 limb joints of an estimate, in LIMB_JOINT_NAMES order, centred between the hips.

    Raises:
        ValueError: the estimate has no joints, or not all of the 12.
    """
    if estimate.joints is None:
        raise ValueError(
            "The estimate lacks the joints: a parametric estimator needs SMPL's files for them. "
            "Load the estimator with the folder that holds them (estimator.smpl_folder)."
        )
    missing = [name for name in LIMB_JOINT_NAMES if name not in joint_names]
    if missing:
        raise ValueError(f"The estimate lacks the joints {missing}.")
    if joint_names == LIMB_JOINT_NAMES:
        joints = estimate.joints
    else:
        joints = estimate.joints[:, [joint_names.index(name) for name in LIMB_JOINT_NAMES]]
    return centred(joints)


def centred(
    joints: Tensor,  # [..., 12, 3] LIMB_JOINT_NAMES order
) -> Tensor:  # [..., 12, 3]
    """The same joints with the middle of the hips at zero."""
    hips = joints[..., [_LEFT_HIP, _RIGHT_HIP], :].mean(-2, keepdim=True)
    return joints - hips


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Inside the block, layers compute in that precision ("bf16": autocast; "fp32": as ever).

    The weights stay as they are, and so does whatever is sensitive (sums, norms): autocast's rules.
    Its cache of weights is off: one filled without gradients would keep them from having any.
    """
    if precision == "fp32":
        yield
        return
    assert precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        yield


def predict(
    estimator: PoseEstimator,
    images: Tensor,  # [N, 3, S, S] uint8
    batch: int = 16,
) -> Tensor:  # [N, 12, 3] metres, mid-hip at 0
    """The limb joints of many images, batch by batch, without gradients."""
    some = next(estimator.parameters(), None)
    device = some.device if some is not None else torch.device("cpu")
    rows = []
    with torch.no_grad():
        for part in images.split(batch):
            estimate = estimator(part.to(device).float() / 255)
            rows.append(limb_joints(estimate, estimator.joint_names).cpu())
    return torch.cat(rows) if rows else torch.zeros(0, len(LIMB_JOINT_NAMES), 3)
