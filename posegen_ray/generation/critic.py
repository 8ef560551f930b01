"""The critic: expects how much a proposal will be paid, before it is rendered.

Rendered feedback is exact but noisy, and costs an image a sample. The critic learns from every
payment made so far. It guides the generator in two ways: by its own, smooth gradient, and by
choosing among candidates. Knows nothing of rendering or estimators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.skeleton import JOINT, JOINT_NAMES, LIMB_JOINTS
from posegen_ray.generation.proposal import Proposal, scene_camera

# T-pose of an average adult, metres: what is hard to see depends little on a person's proportions
_ADULT: dict[str, tuple[float, float, float]] = {
    "pelvis": (0.0, 0.95, 0.0),
    "hip": (0.09, 0.88, 0.0),
    "knee": (0.10, 0.49, 0.0),
    "ankle": (0.10, 0.09, -0.02),
    "foot": (0.11, 0.03, 0.10),
    "spine1": (0.0, 1.06, 0.0),
    "spine2": (0.0, 1.18, 0.0),
    "spine3": (0.0, 1.27, 0.0),
    "neck": (0.0, 1.46, 0.0),
    "head": (0.0, 1.55, 0.02),
    "collar": (0.06, 1.38, 0.0),
    "shoulder": (0.18, 1.40, -0.02),
    "elbow": (0.44, 1.40, -0.03),
    "wrist": (0.69, 1.40, -0.02),
    "hand": (0.77, 1.40, -0.02),
}


def feature_count(num_subjects: int) -> int:
    """How many numbers `features` gives for each proposal."""
    return 3 * len(LIMB_JOINTS) + 3 + 1 + 5 + num_subjects


def _adult_joints() -> Tensor:  # [24, 3]
    rows = []
    for name in JOINT_NAMES:
        x, y, z = _ADULT[name.removeprefix("left_").removeprefix("right_")]
        rows.append((-x if name.startswith("right_") else x, y, z))
    return torch.tensor(rows)


def features(
    proposal: Proposal,
    num_subjects: int,
) -> Tensor:  # [B, feature_count(num_subjects)]
    """What an estimator is shown: limb joints about the mid-hip in camera axes, the picture turned
    so that the trunk points up; which way gravity pulls; the distance; the light as the camera sees
    it; who it is. Differentiable in pose, view and lighting.

    From joint rotations a network would first have to learn kinematics and projection.
    """
    rotations = proposal.poses.rotations
    rest = _adult_joints().to(rotations).expand(len(proposal), -1, -1)
    joints, _ = forward_kinematics(rotations, rest)
    hips = joints[:, [JOINT["left_hip"], JOINT["right_hip"]]].mean(1)
    camera = scene_camera(proposal.view, hips)
    shoulders = joints[:, [JOINT["left_shoulder"], JOINT["right_shoulder"]]].mean(1)
    limbs = joints[:, list(LIMB_JOINTS)] - hips[:, None]
    gravity = torch.zeros_like(hips)
    gravity[:, 1] = -1.0
    seen = torch.cat([limbs, (shoulders - hips)[:, None], gravity[:, None]], 1)
    seen = seen @ camera.rotation.transpose(-1, -2)  # x right, y down, z away
    down = -seen[:, -2, :2]
    down = down / (down.square().sum(-1, keepdim=True) + 1e-3).sqrt()
    across = torch.stack([down[:, 1], -down[:, 0]], 1)
    turned = (seen[..., None, :2] * torch.stack([across, down], 1)[:, None]).sum(-1)
    seen = torch.cat([turned, seen[..., 2:]], -1)
    distance = proposal.view.distance[:, None] / 4 - 1
    who = one_hot(proposal.subjects, num_subjects).to(seen)
    turn, contrast, exposure = proposal.lighting.light.unbind(1)
    turn = turn - proposal.view.azimuth
    bright = [contrast - 1, 2 * exposure.log(), 2 * proposal.lighting.background.log()]
    lit = torch.stack([turn.cos(), turn.sin(), *bright], 1)
    return torch.cat([2 * seen[:, :-2].flatten(1), seen[:, -1], distance, lit, who], 1)


class Critic(nn.Module):
    """A small regression network; answers 0 until it is trained."""

    def __init__(self, num_subjects: int, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(feature_count(num_subjects), hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 1),
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self,
        inputs: Tensor,  # [B, F] from `features`
    ) -> Tensor:  # [B] the payment expected
        """Differentiable in the features."""
        return self.layers(inputs)[:, 0]  # type: ignore[no-any-return]


class CriticMemory:
    """The latest payments and what they were paid for. Its state dict restores it exactly."""

    def __init__(self, size: int, num_subjects: int) -> None:
        self.size = size
        self.inputs = torch.zeros(0, feature_count(num_subjects))
        self.payments = torch.zeros(0)

    def __len__(self) -> int:
        return len(self.payments)

    def add(self, inputs: Tensor, payments: Tensor) -> None:
        """Remembers a batch [B, F], [B]; forgets the oldest beyond its size."""
        good = torch.isfinite(inputs).all(1) & torch.isfinite(payments)
        self.inputs = torch.cat([self.inputs, inputs[good].detach().cpu()])[-self.size :]
        self.payments = torch.cat([self.payments, payments[good].detach().cpu()])[-self.size :]

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch, with replacement."""
        rows = torch.randint(len(self), (count,), generator=rng)
        return self.inputs[rows], self.payments[rows]

    def state_dict(self) -> dict[str, Tensor]:
        return {"inputs": self.inputs.clone(), "payments": self.payments.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.inputs, self.payments = state["inputs"].clone(), state["payments"].clone()
