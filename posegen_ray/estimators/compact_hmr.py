"""A compact HMR (Kanazawa et al. 2018) that is pre-trained here, on source images alone.

The first five stages of EfficientNet-Lite0 (Tan and Le 2019; ImageNet weights by package), an
encoder that keeps the places of its 14 x 14 cells (HMR averages over all: from a few thousand
images that learns slowly), and HMR's regressor, which corrects pose, size and camera three times,
starting from a mean; 6D rotations (Zhou et al. 2019). The skeleton is fixed but for its size, and
stored with the weights: no body model is needed.
`posegen pretrain` makes the weights (posegen_ray.pretrain).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from posegen_ray import assets
from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.rotation import from_6d, to_6d
from posegen_ray.body.skeleton import JOINT_NAMES, NUM_JOINTS
from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.errors import CheckpointError
from posegen_ray.estimators.base import EARLY, LATE, WHOLE, Estimate, PoseEstimator
from posegen_ray.estimators.checkpoints import load_strictly, read_checkpoint
from posegen_ray.estimators.crop import COMPACT_CROP

SIZE = COMPACT_CROP.size
ITERATIONS = 3
BACKBONE = "efficientnet-lite0"  # the asset
FORMAT = 1
_NETWORK = "tf_efficientnet_lite0"
_HIDDEN = 512
_CHANNELS = 128  # of the encoder
_NUM_POSE = 6 * NUM_JOINTS
_STAGES = {WHOLE: 0, EARLY: 3, LATE: 5}  # of the backbone that lie before a cut; all of them: 5


class CompactHMR(PoseEstimator):
    """Rotations, joints and camera; differentiable in the image, trainable.

    Rotations are the skeleton's own, the root's in crop-camera axes. `camera` is (s, x, y) of a
    weak perspective: a joint at (X, Y, Z) metres is seen at s (X + x, Y + y), in half sides of the
    crop from its middle. Crop: upright, 1.2 times the box around the joints, as SPIN's.
    Parameters are frozen when built; its ImageNet weights are not loaded yet.

    Args:
        rest_joints: [24, 3] metres, of the mean person in the T-pose.
        mean_rotations: [24, 3, 3], where the regressor starts; None: the T-pose.
    """

    name = "compact-hmr"
    joint_names = JOINT_NAMES
    crop = COMPACT_CROP
    cuts = (WHOLE, EARLY, LATE)

    def __init__(
        self, rest_joints: Tensor | None = None, mean_rotations: Tensor | None = None
    ) -> None:
        super().__init__()
        self.backbone: Any = _backbone()
        channels = self.backbone.blocks[-1][-1].conv_pwl.out_channels
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, _CHANNELS, 1),
            nn.GroupNorm(8, _CHANNELS),
            nn.ReLU(),
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, 2, 1),
            nn.GroupNorm(8, _CHANNELS),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(_CHANNELS * 7 * 7, _HIDDEN),
            nn.LayerNorm(_HIDDEN),
            nn.ReLU(),
        )
        self.fc1 = nn.Linear(_HIDDEN + _NUM_POSE + 4, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, _HIDDEN)
        self.act = nn.ReLU()
        self.decpose = nn.Linear(_HIDDEN, _NUM_POSE)
        self.decsize = nn.Linear(_HIDDEN, 1)
        self.deccam = nn.Linear(_HIDDEN, 3)
        for decoder in (self.decpose, self.decsize, self.deccam):
            nn.init.xavier_uniform_(decoder.weight, gain=0.01)
            nn.init.zeros_(decoder.bias)
        if rest_joints is None:
            rest_joints = torch.zeros(NUM_JOINTS, 3)
        if mean_rotations is None:
            mean_rotations = torch.eye(3).expand(NUM_JOINTS, 3, 3)
        self.rest_joints: Tensor  # [24, 3]
        self.init_pose: Tensor  # [144]
        self.init_cam: Tensor  # [3]
        self.register_buffer("rest_joints", rest_joints.clone())
        self.register_buffer("init_pose", to_6d(mean_rotations).flatten().clone())
        self.register_buffer("init_cam", torch.tensor([1.0, 0.0, 0.0]))
        self.requires_grad_(False)

    def forward(
        self,
        images: Tensor,  # [B, 3, 224, 224] RGB in [0, 1]
    ) -> Estimate:
        """The estimate; joints are relative to the pelvis."""
        return self.head(images, WHOLE)

    def stem(
        self,
        images: Tensor,  # [B, 3, 224, 224], or the features at `start`
        cut: str,
        start: str = WHOLE,
    ) -> Tensor:  # early: [B, 40, 28, 28]; late: [B, 112, 14, 14]
        self.check_cut(cut)
        self.check_cut(start)
        x = images
        if start == WHOLE != cut:
            # what the published weights were trained on: [-1, 1]
            x = (2 * x - 1).contiguous(memory_format=torch.channels_last)
            x = self.backbone.bn1(self.backbone.conv_stem(x))
        for stage in self.backbone.blocks[_STAGES[start] : _STAGES[cut]]:
            x = stage(x)
        return x

    def head(self, features: Tensor, cut: str) -> Estimate:
        x = self.encoder(self.stem(features, LATE, cut))
        count = len(x)
        pose = self.init_pose.expand(count, -1)
        size = x.new_zeros(count, 1)  # log of the skeleton's size, relative to the mean
        camera = self.init_cam.expand(count, -1)
        for _ in range(ITERATIONS):
            hidden = self.act(self.fc1(torch.cat([x, pose, size, camera], 1)))
            hidden = self.act(self.fc2(hidden))
            pose = pose + self.decpose(hidden)
            size = size + self.decsize(hidden)
            camera = camera + self.deccam(hidden)
        rotations = from_6d(pose.unflatten(1, (NUM_JOINTS, 6)))
        joints, _ = forward_kinematics(rotations, self.rest_joints * size.exp()[:, None])
        joints = joints - joints[:, :1]
        places = camera[:, None, :1] * (joints[..., :2] + camera[:, None, 1:])
        return Estimate(
            joints, rotations, camera=camera, joints_2d=(places + 1) * (self.input_size / 2)
        )

    def tail_parameters(self, cut: str) -> list[nn.Parameter]:
        self.check_cut(cut)
        if cut == WHOLE:
            return list(self.parameters())
        tail = [*self.backbone.blocks[_STAGES[cut] :], self.encoder, self.fc1, self.fc2]
        tail += [self.decpose, self.decsize, self.deccam]
        return [parameter for module in tail for parameter in module.parameters()]


def imagenet_network() -> Any:
    """timm's EfficientNet-Lite0 with its classifier and the published weights, from the asset
    cache; fetched if not there.

    The published file names its tensors otherwise than timm does, but lists them in the same order.

    Raises:
        AssetError: they cannot be fetched.
        CheckpointError: the file does not fit.
    """
    network: Any = timm.create_model(_NETWORK, pretrained=False)
    path = assets.fetch(BACKBONE)
    published, names = read_checkpoint(path), list(network.state_dict())
    if len(published) != len(names):
        raise CheckpointError(
            f"{path} has {len(published)} tensors, EfficientNet-Lite0 {len(names)}.",
            f"Delete it and run `posegen assets fetch {BACKBONE}`.",
        )
    load_strictly(network, dict(zip(names, published.values(), strict=True)), path)
    return network


def load_imagenet(estimator: CompactHMR) -> None:
    """Gives the backbone its ImageNet weights. Raises as `imagenet_network`."""
    estimator.backbone.load_state_dict(_first_stages(imagenet_network()).state_dict())


def _backbone() -> Any:
    return _first_stages(timm.create_model(_NETWORK, pretrained=False))


def _first_stages(network: Any) -> Any:
    """What comes before the last two stages, in the layout in which depthwise convolutions take
    half the time on a CPU."""
    parts: Any = nn.Module()
    parts.conv_stem, parts.bn1 = network.conv_stem, network.bn1
    parts.blocks = network.blocks[: _STAGES[LATE]]
    return parts.to(memory_format=torch.channels_last)


def load_compact_hmr(folder: Path) -> CompactHMR:
    """The estimator that `posegen pretrain` left in a folder, for evaluation.

    Raises:
        CheckpointError: it is missing, damaged, or something else.
    """
    state = load_checkpoint(folder)
    if state.get("format") != FORMAT or "weights" not in state:
        raise CheckpointError(
            f"{folder} holds no compact HMR of format {FORMAT}.", "Run `posegen pretrain` again."
        )
    estimator = CompactHMR()
    load_strictly(estimator, state["weights"], folder)
    return estimator.eval()
