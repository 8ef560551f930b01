"""SPIN (Kolotouros et al. 2019): HMR's network (Kanazawa et al. 2018) with 6D rotations.

A ResNet-50 and a regressor that corrects pose, shape and camera three times, starting from a mean.
Parameter names are those of the published checkpoint. Knows nothing of SMPL's files: it is handed
the rest joints, or does without joints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from posegen_ray.body.model import BodyModel, forward_kinematics
from posegen_ray.body.rotation import from_6d
from posegen_ray.body.skeleton import JOINT_NAMES, NUM_JOINTS
from posegen_ray.estimators.base import EARLY, LATE, WHOLE, Estimate, PoseEstimator
from posegen_ray.estimators.checkpoints import load_strictly, read_checkpoint
from posegen_ray.estimators.crop import SPIN_CROP

SIZE = SPIN_CROP.size
FOCAL = 5000.0  # pixels: nearly parallel rays, whatever the real camera
ITERATIONS = 3
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_NUM_POSE, _NUM_SHAPE = 6 * NUM_JOINTS, 10


class Spin(PoseEstimator):
    """Rotations, shape and camera of SMPL; differentiable in the image, trainable.

    Rotations are in crop-camera axes: SPIN's root turns SMPL's y-up body into a camera that looks
    along +z with y down. `camera` is (s, x, y) of a weak perspective: the body's SMPL origin lies
    at (x, y, 2 FOCAL / (SIZE s)) metres. Crop: upright, 1.2 times the box around the joints.
    Parameters are frozen when built.

    Args:
        body: SMPL, for the joints; None: estimates have none.
        origin: [3] where our body's origin lies in SMPL's coordinates (`smpl_origin`).
        layers: blocks of each stage of the ResNet.
        width: channels of its narrow convolutions, published: 64.
        hidden: of the regressor.
    """

    joint_names = JOINT_NAMES
    crop = SPIN_CROP
    cuts = (WHOLE, EARLY, LATE)

    def __init__(
        self,
        body: BodyModel | None = None,
        origin: Tensor | None = None,
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.name = "spin"
        resnet: Any = ResNet(Bottleneck, list(layers), width_per_group=width)
        num_features = resnet.fc.in_features
        # directly in this module, as the published names are
        self.conv1, self.bn1, self.relu = resnet.conv1, resnet.bn1, resnet.relu
        self.maxpool, self.avgpool = resnet.maxpool, resnet.avgpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        self.fc1 = nn.Linear(num_features + _NUM_POSE + _NUM_SHAPE + 3, hidden)
        self.drop1 = nn.Dropout()
        self.fc2 = nn.Linear(hidden, hidden)
        self.drop2 = nn.Dropout()
        self.decpose = nn.Linear(hidden, _NUM_POSE)
        self.decshape = nn.Linear(hidden, _NUM_SHAPE)
        self.deccam = nn.Linear(hidden, 3)
        for decoder in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(decoder.weight, gain=0.01)
        self.init_pose: Tensor  # [1, 144]
        self.init_shape: Tensor  # [1, 10]
        self.init_cam: Tensor  # [1, 3]
        identity = torch.tensor([1.0, 0, 0, 1, 0, 0])  # rows of the first two columns
        self.register_buffer("init_pose", identity.repeat(NUM_JOINTS)[None])
        self.register_buffer("init_shape", torch.zeros(1, _NUM_SHAPE))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))
        # not part of the published layout, so not of the state dict
        self.joint_template: Tensor | None  # [24, 3] in SMPL's coordinates
        self.joint_directions: Tensor | None  # [24, 3, 10]
        template = directions = None
        if body is not None:
            assert origin is not None
            template, directions = body.joint_template + origin, body.joint_directions
        self.register_buffer("joint_template", template, persistent=False)
        self.register_buffer("joint_directions", directions, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
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
    ) -> Tensor:  # early: [B, 1024, 14, 14]; late: [B, 2048]
        self.check_cut(cut)
        self.check_cut(start)
        first, last = self.cuts.index(start), self.cuts.index(cut)
        x = images
        if first < 1 <= last:
            x = self.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
            x = self.layer3(self.layer2(self.layer1(self.maxpool(x))))
        if first < 2 <= last:
            x = self.avgpool(self.layer4(x)).flatten(1)
        return x

    def head(self, features: Tensor, cut: str) -> Estimate:
        features = self.stem(features, LATE, cut)
        count = len(features)
        pose = self.init_pose.expand(count, -1)
        shape = self.init_shape.expand(count, -1)
        camera = self.init_cam.expand(count, -1)
        for _ in range(ITERATIONS):
            x = torch.cat([features, pose, shape, camera], 1)
            x = self.drop2(self.fc2(self.drop1(self.fc1(x))))
            pose = pose + self.decpose(x)
            shape = shape + self.decshape(x)
            camera = camera + self.deccam(x)
        # the six numbers of a joint are the rows of a 3 x 2 matrix of two columns
        columns = pose.unflatten(1, (NUM_JOINTS, 3, 2)).transpose(-1, -2)
        rotations = from_6d(columns.flatten(-2))
        joints = joints_2d = None
        if self.joint_template is not None:
            rest = self.joint_template + torch.einsum("jcs,bs->bjc", self.joint_directions, shape)
            joints, _ = forward_kinematics(rotations, rest)
            joints_2d = project_weakly(joints, camera)
            joints = joints - joints[:, :1]
        return Estimate(joints, rotations, shape, camera, joints_2d)

    def tail_parameters(self, cut: str) -> list[nn.Parameter]:
        self.check_cut(cut)
        tail: list[nn.Module] = [self.fc1, self.fc2, self.decpose, self.decshape, self.deccam]
        modules = {WHOLE: [self], EARLY: [self.layer4, *tail], LATE: tail}[cut]
        return [parameter for module in modules for parameter in module.parameters()]


def project_weakly(
    joints: Tensor,  # [B, J, 3] metres, SMPL's coordinates after posing
    camera: Tensor,  # [B, 3] s, x, y
) -> Tensor:  # [B, J, 2] pixels of the crop
    """SPIN's projection: a camera far away, its optical axis through the middle of the crop."""
    depth = 2 * FOCAL / (SIZE * camera[:, :1] + 1e-9)
    local = joints + torch.cat([camera[:, 1:], depth], 1)[:, None]
    return FOCAL * local[..., :2] / local[..., 2:] + SIZE / 2


def load_spin(
    checkpoint: Path, body: BodyModel | None = None, origin: Tensor | None = None
) -> Spin:
    """SPIN with the published weights (`model` of the file), for evaluation.

    Raises:
        CheckpointError: the file is missing, damaged, or not SPIN's.
    """
    spin = Spin(body, origin)
    load_strictly(spin, read_checkpoint(checkpoint), checkpoint)
    return spin.eval()
