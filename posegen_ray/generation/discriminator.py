"""The discriminator: does a pose, part by part and as a whole, look like motion capture?

Knows nothing about cameras, rendering or estimators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posegen_ray.body.rotation import to_6d
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.config import DiscriminatorConfig
from posegen_ray.generation.proposal import descendants

_TORSO = tuple(
    JOINT[name] for name in ("spine1", "spine2", "spine3", "left_collar", "right_collar")
)
PARTS: dict[str, tuple[int, ...]] = {
    "left_leg": descendants("left_hip"),
    "right_leg": descendants("right_hip"),
    "left_arm": descendants("left_shoulder"),
    "right_arm": descendants("right_shoulder"),
    "head": (JOINT["neck"], JOINT["head"]),
    "torso": _TORSO,
    "body": tuple(range(1, NUM_JOINTS)),
}


class Discriminator(nn.Module):
    """Small networks on 6D rotations, one a part; trained with least squares (Mao et al. 2017).

    The torso and the whole body also see which way is up in the pelvis' frame: the root's
    orientation relative to gravity, whatever the heading.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.judges = nn.ModuleDict()
        for name, joints in PARTS.items():
            inputs = len(joints) * 6 + (3 if name in ("torso", "body") else 0)
            hidden = config.hidden if name == "body" else config.hidden // 2
            self.judges[name] = nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(hidden, hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(hidden, 1),
            )

    def forward(
        self,
        rotations: Tensor,  # [B, 24, 3, 3] local
    ) -> Tensor:  # [B, 7] one score per part; 1 real, 0 made up
        """Differentiable in the rotations."""
        features = to_6d(rotations)
        up = rotations[:, 0, 1, :]  # the world's up axis in the pelvis' frame
        scores = []
        for name, joints in PARTS.items():
            part = features[:, list(joints)].flatten(1)
            if name in ("torso", "body"):
                part = torch.cat([part, up], 1)
            scores.append(self.judges[name](part))
        return torch.cat(scores, 1)


class HistoryPool:
    """Earlier fakes, shown again to the discriminator so that it does not forget them.

    A ring of fixed size; its state dict restores it exactly.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rotations = torch.zeros(0, NUM_JOINTS, 3, 3)
        self.next = 0

    def __len__(self) -> int:
        return len(self.rotations)

    def mix(
        self,
        fakes: Tensor,  # [B, 24, 3, 3]
        share: float,
        rng: torch.Generator,
    ) -> Tensor:  # [B, 24, 3, 3]
        """Replaces that share of the fakes by older ones, and remembers the new ones."""
        fakes = fakes.detach()
        mixed = fakes
        if len(self):
            rows = torch.randint(len(self), (len(fakes),), generator=rng)
            old = torch.rand(len(fakes), generator=rng) < share
            pool = self.rotations.to(fakes)
            mixed = torch.where(old[:, None, None, None].to(fakes.device), pool[rows], fakes)
        finite = torch.isfinite(fakes).flatten(1).all(1)
        self._push(fakes[finite].cpu())
        return mixed

    def _push(self, fakes: Tensor) -> None:
        room = self.size - len(self)
        self.rotations = torch.cat([self.rotations, fakes[:room]])
        rest = fakes[room:] if room < len(fakes) else fakes[:0]
        for rotation in rest:
            self.rotations[self.next] = rotation
            self.next = (self.next + 1) % self.size

    def state_dict(self) -> dict[str, Tensor]:
        return {"rotations": self.rotations.clone(), "next": torch.tensor(self.next)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rotations = state["rotations"].clone()
        self.next = int(state["next"])
