"""BlazePose GHUM (Bazarevsky et al. 2020; Grishchenko et al. 2022) as a trainable torch module.

One forward pass answers 33 world landmarks in metres; a linear joint map turns them into the 12
limb joints of the common skeleton. The weights are Google's, read from the published .tflite file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.assets import fetch
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, mirrored
from posegen_ray.estimators.base import EARLY, LATE, WHOLE, Estimate, PoseEstimator, centred
from posegen_ray.estimators.crop import CropSpec, PictureCrop
from posegen_ray.estimators.tflite_graph import TFLiteGraph

NUM_LANDMARKS = 33
# the landmark that means each limb joint, in LIMB_JOINT_NAMES order
OBVIOUS_LANDMARKS = (11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
# left/right counterpart of each landmark
MIRRORED_LANDMARKS = (
    0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9,
    12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21, 24, 23, 26, 25, 28, 27, 30, 29, 32, 31,
)  # fmt: skip
_HIPS = (23, 24)

# positions in the file's list of outputs
WORLD_LANDMARKS, _PRESENCE = 4, 1


class BlazePose(PoseEstimator):
    """BlazePose GHUM; differentiable in the image, trainable, and frozen when built.

    Its crop is square, centred at the hips and turned so that hip -> shoulder points up.
    Parameters do not require gradients until somebody (`finetune`) opens them.

    Args:
        path: the .tflite file.
        variant: lite | full | heavy.

    Raises:
        DataError: the file is damaged.
    """

    joint_names = LIMB_JOINT_NAMES
    # by the box alone: how large the aligned crop is around people who walk, jump and dance
    crop = CropSpec(size=256, picture=PictureCrop(about_joints=1.7, about_person=1.3))
    cuts = (WHOLE, EARLY, LATE)

    def __init__(self, path: Path, variant: str = "full") -> None:
        super().__init__()
        self.name = f"blazepose-{variant}"
        self.graph = TFLiteGraph(path, (WORLD_LANDMARKS, _PRESENCE))
        self.graph.requires_grad_(False)
        self.joint_map: Tensor  # [12, 33]
        self.register_buffer("joint_map", obvious_joint_map())
        self._world, self._presence = self.graph.outputs
        self._entry = {
            WHOLE: self.graph.input,
            EARLY: _narrow_cut(self.graph, rows=16),
            LATE: _narrow_cut(self.graph, rows=8),
        }

    def forward(
        self,
        images: Tensor,  # [B, 3, 256, 256] RGB in [0, 1]
    ) -> Estimate:
        """The 12 limb joints, metres, mid-hip at zero."""
        return self.head(images, WHOLE)

    def stem(
        self,
        images: Tensor,  # [B, 3, 256, 256], or the features at `start`
        cut: str,
        start: str = WHOLE,
    ) -> Tensor:  # [B, C, h, w]; full: early 88 x 16 x 16, late 144 x 8 x 8
        self.check_cut(cut)
        self.check_cut(start)
        if cut == start:
            return images
        return self.graph.run(self._entry[start], images, (self._entry[cut],))[0]

    def head(self, features: Tensor, cut: str) -> Estimate:
        self.check_cut(cut)
        (flat,) = self.graph.run(self._entry[cut], features, (self._world,))
        return Estimate(self.map_joints(_unpack(flat)))

    def tail_parameters(self, cut: str) -> list[torch.nn.Parameter]:
        self.check_cut(cut)
        return self.graph.parameters_between(self._entry[cut], (self._world,))

    def landmarks(
        self,
        images: Tensor,  # [B, 3, 256, 256]
    ) -> Tensor:  # [B, 33, 3] metres, about the mid-hip, crop-camera axes
        """The world landmarks as published, before the joint map."""
        return _unpack(self.graph.run(self.graph.input, images, (self._world,))[0])

    def presence(
        self,
        images: Tensor,  # [B, 3, 256, 256]
    ) -> Tensor:  # [B] in [0, 1]
        """How sure the network is that the crop shows a person."""
        return self.graph.run(self.graph.input, images, (self._presence,))[0][:, 0]

    def map_joints(
        self,
        landmarks: Tensor,  # [B, 33, 3]
    ) -> Tensor:  # [B, 12, 3] mid-hip at 0
        """Landmarks -> limb joints by the current joint map."""
        return centred(self.joint_map @ landmarks)

    def set_joint_map(
        self,
        joint_map: Tensor,  # [12, 33], e.g. from fit_joint_map
    ) -> None:
        """Replaces the joint map; it is stored with the weights."""
        assert joint_map.shape == self.joint_map.shape
        self.joint_map.copy_(joint_map)


def load_blazepose(variant: str = "full") -> BlazePose:
    """BlazePose from the asset cache, fetched first if it is not there.

    Raises:
        AssetError: it cannot be fetched.
    """
    return BlazePose(fetch(f"blazepose-{variant}"), variant)


def obvious_joint_map() -> Tensor:  # [12, 33]
    """Each limb joint is the landmark of the same name."""
    return torch.eye(NUM_LANDMARKS)[list(OBVIOUS_LANDMARKS)]


def fit_joint_map(
    landmarks: Tensor,  # [N, 33, 3] metres, predicted
    joints: Tensor,  # [N, 12, 3] metres, true, in LIMB_JOINT_NAMES order
    ridge: float = 0.03,
    rounds: int = 5,
) -> Tensor:  # [12, 33]
    """The linear map from landmarks to joints, the same for x, y and z; both are hip-centred here.

    Least absolute error (by re-weighted least squares, so failed images count little), pulled
    towards the landmark of the same name, symmetric in left and right.

    Args:
        ridge: strength of the pull, relative to the mean variance of the landmarks.
        rounds: of re-weighting.
    """
    start = obvious_joint_map().double()
    x, y = landmarks.double(), centred(joints.double())
    x = x - x[:, list(_HIPS)].mean(1, keepdim=True)
    flip = x.new_tensor([-1, 1, 1])
    x = torch.cat([x, x[:, list(MIRRORED_LANDMARKS)] * flip])
    y = torch.cat([y, y[:, list(mirrored(LIMB_JOINT_NAMES))] * flip])
    rest = y - start @ x  # what the obvious map leaves
    pull = ridge * x.square().mean() * torch.eye(NUM_LANDMARKS, dtype=x.dtype)
    change = torch.zeros_like(start)
    for _ in range(rounds):
        distance = (rest - change @ x).norm(dim=-1)  # [2N, 12]
        weight = 1 / (distance + 0.01)
        weight = weight / weight.sum(0)
        gram = torch.einsum("nj,nac,nbc->jab", weight, x, x) / 3
        cross = torch.einsum("nj,nac,njc->ja", weight, x, rest) / 3
        change = torch.linalg.solve(gram + pull, cross)
    # Adding to the hips' columns changes nothing on hip-centred landmarks; with rows that sum to
    # one the map means the same on landmarks that are not centred.
    change[:, list(_HIPS)] -= change.sum(1, keepdim=True) / 2
    fitted: Tensor = (start + change).float()
    return fitted


def _unpack(
    flat: Tensor,  # [B, 117] 33 body landmarks and 6 auxiliary ones
) -> Tensor:  # [B, 33, 3]
    return flat[:, : NUM_LANDMARKS * 3].view(-1, NUM_LANDMARKS, 3)


def _narrow_cut(graph: TFLiteGraph, rows: int) -> int:
    """The last bottleneck (few channels) at the lowest resolution of at least `rows` rows."""
    shapes = {cut: graph.shapes[cut] for cut in graph.cuts(graph.outputs[0])}
    resolution = min(shape[1] for shape in shapes.values() if len(shape) == 4 and shape[1] >= rows)
    channels = {cut: shape[3] for cut, shape in shapes.items() if shape[1] == resolution}
    return max(cut for cut, count in channels.items() if count <= 1.5 * min(channels.values()))
