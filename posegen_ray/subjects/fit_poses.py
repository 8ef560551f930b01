"""Corrections of a capture's poses and cameras, learned together with the field.

Each training frame has a turn of every joint, a shift of the body, and a turn and a shift of its
camera, all small, all zero to begin with. Held-out frames stay as they were given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from posegen_ray.body.camera import Camera
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.records import PoseBatch
from posegen_ray.subjects.capture import Capture

_JOINTS = 24
_STAY = 1e-2  # pull back to what was given, of squared radians and metres


class FrameCorrections:
    """What is learned about the frames, and its optimiser.

    Args:
        rate: Adam step, radians and metres.
    """

    def __init__(self, capture: Capture, body: BodyModel, rate: float) -> None:
        self._capture = capture
        self._body = body
        # joints' turns, the body's shift, the camera's turn, the camera's shift
        size = 3 * _JOINTS + 3 + 3 + 3
        self.table = nn.Embedding(len(capture), size, sparse=True)
        nn.init.zeros_(self.table.weight)
        # only a frame's own row moves with it
        self.optimiser = torch.optim.SparseAdam(self.table.parameters(), rate, betas=(0.9, 0.99))

    def frame(self, index: int) -> tuple[Tensor, Camera, Tensor]:
        """A frame's bones [1, 24, 3, 4] and camera with gradients, and what being so far from the
        given ones costs."""
        row = self.table(torch.tensor([index]))
        poses, view = self._corrected(row, slice(index, index + 1))
        posed = self._body(poses.rotations, self._capture.shape[None], poses.translation)
        return posed.bones, view, _STAY * row.square().sum()

    def step(self) -> None:
        """Follows the gradients that have come back."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state(self) -> dict[str, Any]:
        return {"table": self.table.weight.detach(), "moments": self.optimiser.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.table.weight.copy_(state["table"])
        self.optimiser.load_state_dict(state["moments"])

    @torch.no_grad()
    def apply(self) -> Capture:
        """The capture with the corrected poses and cameras."""
        poses, camera = self._corrected(self.table.weight, slice(None))
        return replace(self._capture, poses=poses, camera=camera)

    def _corrected(self, rows: Tensor, frames: slice) -> tuple[PoseBatch, Camera]:
        turns, shift, camera_turn, camera_shift = rows.split((3 * _JOINTS, 3, 3, 3), 1)
        poses, camera = self._capture.poses[frames], self._capture.camera[frames]
        return (
            PoseBatch(
                poses.rotations @ from_axis_angle(turns.unflatten(1, (_JOINTS, 3))),
                poses.translation + shift,
            ),
            replace(
                camera,
                rotation=from_axis_angle(camera_turn) @ camera.rotation,
                translation=camera.translation + camera_shift,
            ),
        )
