"""The critic: expects how much a proposal will be paid, before it is rendered.

Rendered feedback is exact but noisy, and costs an image a sample. The critic learns from every
payment made so far. It guides the generator in two ways: by its own, smooth gradient, and by
choosing among candidates. Knows nothing of rendering or estimators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posegen_ray.body.rotation import to_6d
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.generation.proposal import FRAME_SIZE, PERSON_HEIGHT, Proposal, facing

_FEATURES = (NUM_JOINTS - 1) * 6 + 3 + 3 + 5


def features(
    proposal: Proposal,
) -> Tensor:  # [B, F]
    """Pose relative to gravity, and view relative to the body. Differentiable in both.

    The direction to the camera and the up axis are given in the pelvis' frame, so that nothing
    jumps where a heading or an azimuth wraps.
    """
    rotations, view = proposal.poses.rotations, proposal.view
    flat = view.elevation.cos()
    toward = torch.stack(
        [view.azimuth.sin() * flat, view.elevation.sin(), view.azimuth.cos() * flat], 1
    )
    toward = (rotations[:, 0].transpose(-1, -2) @ toward[..., None])[..., 0]
    heading = facing(rotations).detach()
    fill = view.focal * PERSON_HEIGHT / (FRAME_SIZE * view.distance)
    return torch.cat(
        [
            to_6d(rotations[:, 1:]).flatten(1),
            rotations[:, 0, 1, :],
            toward,
            torch.stack(
                [
                    (view.azimuth - heading).cos(),
                    (view.azimuth - heading).sin(),
                    view.elevation,
                    view.distance / 4 - 1,
                    4 * fill - 2,
                ],
                1,
            ),
        ],
        1,
    )


class Critic(nn.Module):
    """A small regression network; answers 0 until it is trained."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(_FEATURES, hidden),
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

    def __init__(self, size: int) -> None:
        self.size = size
        self.inputs = torch.zeros(0, _FEATURES)
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
