"""HybrIK (Li et al. 2021): 3D heatmaps and twist angles -> SMPL by hybrid inverse kinematics.

Two networks: a ResNet-34 with three deconvolutions, and HRNet-W48 (Wang et al. 2020). Parameter
names are those of the published checkpoints, which hold SMPL's arrays too (`smpl.*`).

Legend: B batch, J = 29 joints (SMPL's 24 and five leaves), S = 64 cells along a heatmap's edge.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.skeleton import JOINT_NAMES, NUM_JOINTS, mirrored
from posegen_ray.body.smpl_files import NUM_SHAPE
from posegen_ray.estimators.base import EARLY, LATE, WHOLE, Estimate, PoseEstimator
from posegen_ray.estimators.checkpoints import load_strictly, read_checkpoint
from posegen_ray.estimators.crop import HYBRIK_CROP
from posegen_ray.estimators.hybrid_ik import (
    CHILDREN,
    LEAF_NAMES,
    NUM_WITH_LEAVES,
    PARENTS_WITH_LEAVES,
    inverse_kinematics,
)

SIZE = HYBRIK_CROP.size
FOCAL = 1000.0  # pixels of the crop
DEPTH = 2.2  # metres: the heatmap's box along z
CELLS = 64
LEAF_VERTICES = (411, 2445, 5905, 3216, 6617)
# published so: the means are not ImageNet's, and the deviations are in another order than its
_MEAN = (0.406, 0.457, 0.480)
_STD = (0.225, 0.224, 0.229)
_SWAPPED = mirrored(JOINT_NAMES + LEAF_NAMES)
_NUM_TWISTS = NUM_JOINTS - 1

Arrays = dict[str, np.ndarray]


class SmplLayer(nn.Module):
    """SMPL's arrays in the layout of HybrIK's checkpoints; of them only the rest joints are used.

    Args:
        arrays: of `read_smpl_file`.
    """

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        vertices = len(arrays["v_template"])
        directions = arrays["posedirs"].shape[-1]
        buffers = {
            "faces_tensor": arrays["f"],
            "v_template": arrays["v_template"],
            "shapedirs": arrays["shapedirs"][..., :NUM_SHAPE],
            "posedirs": arrays["posedirs"].reshape(-1, directions).T,
            "J_regressor": arrays["J_regressor"],
            # a file of its own; the checkpoint brings it
            "J_regressor_h36m": np.zeros((17, vertices), np.float32),
            "children_map": np.array(CHILDREN + (-1,) * len(LEAF_NAMES)),
            "parents": np.array(PARENTS_WITH_LEAVES),
            "lbs_weights": arrays["weights"],
        }
        self.v_template: Tensor
        self.shapedirs: Tensor
        self.J_regressor: Tensor
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(np.array(array, order="C")))

    def rest_joints(
        self,
        shape: Tensor,  # [B, 10]
    ) -> Tensor:  # [B, 29, 3] metres, T-pose
        """SMPL's joints and the five leaves, which are vertices. Differentiable."""
        leaves = list(LEAF_VERTICES)
        template = torch.cat([self.J_regressor @ self.v_template, self.v_template[leaves]])
        inner = torch.einsum("jv,vcs->jcs", self.J_regressor, self.shapedirs)
        directions = torch.cat([inner, self.shapedirs[leaves]])
        return template + torch.einsum("jcs,bs->bjc", directions, shape)


@dataclass(frozen=True)
class Answer:
    """What the network says of a crop, before geometry."""

    uvd: Tensor  # [B, 29, 3] in [-0.5, 0.5]: across and down the crop, and depth, in DEPTH
    shape: Tensor  # [B, 10]
    twist: Tensor  # [B, 23, 2] cos, sin; not of unit length
    camera: Tensor  # [B, 3] scale, x, y; HRNet: [B, 1] scale
    sigma: Tensor  # [B, 29] in (0, 1): how unsure


class HybrIK(PoseEstimator):
    """Joints, rotations, shape and camera; differentiable in the image, trainable.

    `joints` are the heatmaps' (29, relative to the pelvis), `rotations` what inverse kinematics
    makes of them: the adaptive one at evaluation, the naive one in training mode. Axes are the
    crop camera's. Crop: upright, 1.25 times the box around the joints. Frozen when built.

    Args:
        smpl: arrays of `read_smpl_file`.
        flip_test: also asks for the mirrored image, as in the published numbers; twice the time.
            Evaluation mode and `forward` only: `head` of kept features cannot.
    """

    joint_names = JOINT_NAMES + LEAF_NAMES
    cuts = (WHOLE, EARLY, LATE)
    crop = HYBRIK_CROP
    stem_parts: tuple[str, ...]  # how names of parameters before the cut `late` begin
    late_parts: tuple[str, ...]  # of them, those after the cut `early`

    def __init__(self, name: str, smpl: Arrays, camera: tuple[float, ...], flip_test: bool) -> None:
        super().__init__()
        self.name = name
        self.flip_test = flip_test
        self.smpl = SmplLayer(smpl)
        self.init_shape: Tensor  # [10]
        self.init_cam: Tensor  # [3] or [1]
        self.register_buffer("init_shape", torch.zeros(NUM_SHAPE))
        self.register_buffer("init_cam", torch.tensor(camera))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def add_heads(self, features: int) -> None:
        """The linear layers behind the pooled features."""
        self.decshape = nn.Linear(features, NUM_SHAPE)
        self.decphi = nn.Linear(features, 2 * _NUM_TWISTS)
        self.deccam = nn.Linear(features, len(self.init_cam))
        self.decsigma = nn.Linear(features, NUM_WITH_LEAVES)

    @property
    def looks_twice(self) -> bool:
        return self.flip_test and not self.training

    def forward(
        self,
        images: Tensor,  # [B, 3, 256, 256] RGB in [0, 1]
        offset: Tensor | None = None,  # [B, 2]
    ) -> Estimate:
        """The estimate for each image.

        Args:
            offset: from the whole picture's middle (where the optical axis is) to the crop's
                middle, as a share of the crop's side; None: zero.
        """
        if not self.looks_twice:
            return self.head(images, WHOLE, offset)
        mirror = self.answer(images.flip(-1), WHOLE, flip=True)
        return self.solve(self.averaged(self.answer(images, WHOLE), mirror), offset)

    def in_picture(self, images: Tensor, offset: Tensor) -> Estimate:
        return self(images, offset)  # type: ignore[no-any-return]

    def head(self, features: Tensor, cut: str, offset: Tensor | None = None) -> Estimate:
        return self.solve(self.answer(features, cut), offset)

    @abstractmethod
    def answer(self, features: Tensor, cut: str, flip: bool = False) -> Answer:
        """The network from the cut on; `flip`: of mirrored images, told for the original ones."""

    @abstractmethod
    def averaged(self, a: Answer, b: Answer) -> Answer:
        """The mean of two answers about the same people."""

    def tail_parameters(self, cut: str) -> list[nn.Parameter]:
        self.check_cut(cut)
        trained = {WHOLE: ("",), EARLY: self.late_parts, LATE: ()}[cut]
        return [
            parameter
            for name, parameter in self.named_parameters()
            if not name.startswith(self.stem_parts) or name.startswith(trained)
        ]

    def normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def decode(
        self,
        logits: Tensor,  # [B, 29 * S, S, S]
        pooled: Tensor,  # [B, C]
        flip: bool,
    ) -> Answer:
        """Heatmaps and pooled features -> an answer."""
        heatmaps = logits.unflatten(1, (NUM_WITH_LEAVES, -1))
        twist = self.decphi(pooled).unflatten(1, (_NUM_TWISTS, 2))
        camera = self.deccam(pooled) + self.init_cam
        sigma = self.decsigma(pooled).sigmoid()
        if flip:
            swapped = list(_SWAPPED)
            heatmaps = heatmaps.flip(-1)[:, swapped]
            # a mirrored image lies one cell further left than its heatmap says
            heatmaps = torch.cat([heatmaps[..., :1], heatmaps[..., :-1]], -1)
            twist = twist[:, [joint - 1 for joint in swapped[1:NUM_JOINTS]]]
            twist = twist * twist.new_tensor([1, -1])
            sigma = sigma[:, swapped]
        shape = self.decshape(pooled) + self.init_shape
        return Answer(soft_argmax(heatmaps), shape, twist, camera, sigma)

    def solve(self, answer: Answer, offset: Tensor | None = None) -> Estimate:
        """Geometry: where the joints are, and the rotations that bring SMPL there."""
        rest = self.smpl.rest_joints(answer.shape)
        joints = back_project(answer.uvd, answer.camera[:, :1], offset)
        joints = joints - joints[:, :1]  # the camera's x and y go with it
        rotations = inverse_kinematics(joints, rest, answer.twist, adaptive=not self.training)
        # the published targets count from the first pixel's middle, we from its corner
        joints_2d = (answer.uvd[..., :2] + 0.5) * SIZE + 0.5
        return Estimate(joints, rotations, answer.shape, answer.camera, joints_2d)


class HybrIKResNet(HybrIK):
    """HybrIK on a ResNet, published as ResNet-34; `camera` is (scale, x, y).

    Args:
        layers: blocks of each stage.
        deconvolution: channels of the deconvolutions.
        hidden: of the layers behind the pooled features.
        cells: along a heatmap's z edge.
    """

    stem_parts = ("preact.",)
    late_parts = ("preact.layer4.",)

    def __init__(
        self,
        smpl: Arrays,
        flip_test: bool = True,
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        deconvolution: int = 256,
        hidden: int = 1024,
        cells: int = CELLS,
    ) -> None:
        super().__init__("hybrik-res34", smpl, (0.9, 0.0, 0.0), flip_test)
        self.preact: Any = ResNet(BasicBlock, list(layers))
        channels = self.preact.fc.in_features
        del self.preact.fc
        blocks: list[nn.Module] = []
        for inputs in (channels, deconvolution, deconvolution):
            blocks += [
                nn.ConvTranspose2d(inputs, deconvolution, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(deconvolution),
                nn.ReLU(inplace=True),
            ]
        self.deconv_layers = nn.Sequential(*blocks)
        self.final_layer = nn.Conv2d(deconvolution, NUM_WITH_LEAVES * cells, 1)
        self.fc1 = nn.Linear(channels, hidden)
        self.drop1 = nn.Dropout()
        self.fc2 = nn.Linear(hidden, hidden)
        self.drop2 = nn.Dropout()
        self.add_heads(hidden)
        self.requires_grad_(False)

    def stem(
        self,
        images: Tensor,  # [B, 3, 256, 256], or the features at `start`
        cut: str,
        start: str = WHOLE,
    ) -> Tensor:  # early: [B, 256, 16, 16]; late: [B, 512, 8, 8]
        self.check_cut(cut)
        self.check_cut(start)
        first, last = self.cuts.index(start), self.cuts.index(cut)
        net, x = self.preact, images
        if first < 1 <= last:
            x = net.maxpool(net.relu(net.bn1(net.conv1(self.normalised(x)))))
            x = net.layer3(net.layer2(net.layer1(x)))
        if first < 2 <= last:
            x = net.layer4(x)
        return x

    def answer(self, features: Tensor, cut: str, flip: bool = False) -> Answer:
        x = self.stem(features, LATE, cut)
        pooled = self.preact.avgpool(x).flatten(1)
        pooled = self.drop2(self.fc2(self.drop1(self.fc1(pooled))))
        answer = self.decode(self.final_layer(self.deconv_layers(x)), pooled, flip)
        if not flip:
            return answer
        camera = answer.camera * answer.camera.new_tensor([1, -1, 1])
        return Answer(answer.uvd, answer.shape, answer.twist, camera, answer.sigma)

    def averaged(self, a: Answer, b: Answer) -> Answer:
        return Answer(
            (a.uvd + b.uvd) / 2,
            (a.shape + b.shape) / 2,
            (a.twist + b.twist) / 2,
            (a.camera + b.camera) / 2,
            (a.sigma + b.sigma) / 2,
        )


class HybrIKHRNet(HybrIK):
    """HybrIK on an HRNet, published as W48; `camera` is the scale alone.

    At evaluation the scale is estimated again from the joints (see `refined`).

    Args:
        network: timm's name of the HRNet.
        cells: along a heatmap's z edge.
    """

    stem_parts = tuple(
        f"preact.{part}" for part in ("conv", "bn", "layer1.", "transition", "stage")
    )
    late_parts = ("preact.transition3.", "preact.stage4.")

    def __init__(
        self,
        smpl: Arrays,
        flip_test: bool = True,
        network: str = "hrnet_w48",
        cells: int = CELLS,
    ) -> None:
        super().__init__("hybrik-w48", smpl, (0.9,), flip_test)
        self.preact: Any
        net: Any = timm.create_model(network, pretrained=False, num_classes=0)
        # HybrIK's final_layer makes the heatmaps; timm's it calls otherwise
        net.final_feat_layer = net.final_layer
        width = net.stage4_cfg["num_channels"][0]
        net.final_layer = nn.Conv2d(width, NUM_WITH_LEAVES * cells, 1)
        self.preact = net
        self.add_heads(net.num_features)
        self.requires_grad_(False)

    def stem(
        self,
        images: Tensor,  # [B, 3, 256, 256], or the features at `start`
        cut: str,
        start: str = WHOLE,
    ) -> Tensor:  # [B, N] of all scales: early 3 of 344,064 numbers, late 4 of 368,640
        self.check_cut(cut)
        self.check_cut(start)
        first, last = self.cuts.index(start), self.cuts.index(cut)
        net, x = self.preact, images
        if first < 1 <= last:
            x = net.act1(net.bn1(net.conv1(self.normalised(x))))
            x = net.layer1(net.act2(net.bn2(net.conv2(x))))
            scales = net.stage2([change(x) for change in net.transition1])
            x = _joined(net.stage3(_changed(net.transition2, scales)))
        if first < 2 <= last:
            x = _joined(net.stage4(_changed(net.transition3, self._scales(x, 3))))
        return x

    def _scales(
        self,
        features: Tensor,  # [B, N]
        count: int,
    ) -> list[Tensor]:  # [B, C, H, H] each, the finest first
        shapes = [
            (channels, SIZE // (4 * 2**scale), SIZE // (4 * 2**scale))
            for scale, channels in enumerate(self.preact.stage4_cfg["num_channels"][:count])
        ]
        parts = features.split([math.prod(shape) for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def answer(self, features: Tensor, cut: str, flip: bool = False) -> Answer:
        net = self.preact
        scales = self._scales(self.stem(features, LATE, cut), 4)
        y = net.incre_modules[0](scales[0])
        for incre, down, scale in zip(
            net.incre_modules[1:], net.downsamp_modules, scales[1:], strict=True
        ):
            y = incre(scale) + down(y)
        pooled = net.final_feat_layer(y).mean((2, 3))
        return self.decode(net.final_layer(scales[0]), pooled, flip)

    def averaged(self, a: Answer, b: Answer) -> Answer:
        return Answer(
            (a.uvd + b.uvd) / 2,
            (a.shape + b.shape) / 2,
            (a.twist + b.twist) / 2,
            2 / (1 / a.camera + 1 / b.camera),
            (a.sigma + b.sigma) / 2,
        )

    def solve(self, answer: Answer, offset: Tensor | None = None) -> Estimate:
        if self.training:
            return super().solve(answer, offset)
        return super().solve(self.refined(answer, offset), offset)

    def refined(self, answer: Answer, offset: Tensor | None = None) -> Answer:
        """The same answer with the scale at which the posed SMPL fits the picture best.

        Least squares over the 24 joints, weighted by how sure they are; unchanged where none is
        sure enough. Differentiable.
        """
        rest = self.smpl.rest_joints(answer.shape)
        joints = back_project(answer.uvd, answer.camera, offset)
        relative = joints - joints[:, :1]
        rotations = inverse_kinematics(relative, rest, answer.twist, adaptive=False)
        posed, _ = forward_kinematics(rotations, rest[:, :NUM_JOINTS])
        posed = posed - posed[:, :1] + joints[:, :1]
        weight = (1 - 10 * answer.sigma[:, :NUM_JOINTS, None]).clamp_min(0)
        seen = answer.uvd[:, :NUM_JOINTS, :2]
        if offset is not None:
            seen = seen + offset[:, None]
        gap = (posed[..., :2] - SIZE / FOCAL * seen * posed[..., 2:]) * weight
        seen = seen * weight
        power = seen.square().sum((1, 2))
        inverse = (seen * gap).sum((1, 2)) / torch.where(power > 0, power, 1.0)
        known = (power > 0) & (inverse != 0)
        scale = torch.where(known, 1 / torch.where(known, inverse, 1.0), answer.camera[:, 0])
        return Answer(answer.uvd, answer.shape, answer.twist, scale[:, None], answer.sigma)


def _joined(scales: list[Tensor]) -> Tensor:  # [B, N]
    return torch.cat([scale.flatten(1) for scale in scales], 1)


def _changed(transition: Any, scales: list[Tensor]) -> list[Tensor]:
    """What HRNet's next stage is given: the same scales, and a new one made of the coarsest."""
    new = list(transition)[len(scales) :]
    return [*scales, *(change(scales[-1]) for change in new)]


def soft_argmax(
    heatmaps: Tensor,  # [B, J, D, H, W] logits
) -> Tensor:  # [B, J, 3] x, y, z in [-0.5, 0.5)
    """The mean place of each heatmap's softmax over all its cells. Differentiable."""
    probability = heatmaps.flatten(2).softmax(-1).view(heatmaps.shape)
    plane = probability.sum(2)  # [B, J, H, W]
    marginals = (plane.sum(2), plane.sum(3), probability.sum((3, 4)))
    means = []
    for marginal in marginals:
        cells = torch.arange(marginal.shape[-1], dtype=marginal.dtype, device=marginal.device)
        means.append((marginal * cells).sum(-1) / len(cells) - 0.5)
    return torch.stack(means, -1)


def back_project(
    uvd: Tensor,  # [B, J, 3]
    scale: Tensor,  # [B, 1]: the crop's focal length over its size and the root's depth
    offset: Tensor | None,  # [B, 2] of the crop's middle, as a share of its side
) -> Tensor:  # [B, J, 3] metres; z relative to the depth that the scale means
    """Places in the crop -> places in front of its camera. Differentiable."""
    depth = FOCAL / (SIZE * scale[:, None] + 1e-9)
    z = DEPTH * uvd[..., 2:]
    across = uvd[..., :2] if offset is None else uvd[..., :2] + offset[:, None]
    return torch.cat([across * (SIZE / FOCAL) * (z + depth), z], -1)


def load_hybrik(kind: str, checkpoint: Path, smpl: Arrays, flip_test: bool = True) -> HybrIK:
    """HybrIK with the published weights, for evaluation.

    Args:
        kind: hybrik_res34 | hybrik_w48.

    Raises:
        CheckpointError: the file is missing, damaged, or another estimator's.
    """
    state = read_checkpoint(checkpoint)
    hybrik: HybrIK
    if kind == "hybrik_res34":
        hybrik = HybrIKResNet(smpl, flip_test)
    else:
        assert kind == "hybrik_w48"
        hybrik = HybrIKHRNet(smpl, flip_test)
    load_strictly(hybrik, state, checkpoint)
    return hybrik.eval()
