"""How a person's cloth and hair move, learned together with the field.

A body says how its skin moves; what is worn moves with other shares of the bones, and hangs
elsewhere (learned motion weights as in HumanNeRF, Weng et al. 2022), and looks another way: light
falls on a skirt, not on the thighs below it. Each vertex of the lattice has a correction of its
skinning weights, as logits, a shift of the place in the T-pose from which it is skinned, and a
change of its normal; all are zero to begin with, and again when empty places have gone: then the
lattice itself has what was learned.

Legend: B pictures, V lattice vertices.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import warp as wp
from scipy.sparse import csr_matrix, eye
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from posegen_ray.body.camera import Camera
from posegen_ray.subjects import fit_kernels
from posegen_ray.subjects.build_lattice import mean_of_neighbours
from posegen_ray.subjects.deform import Lattice
from posegen_ray.subjects.render_fused import launch
from posegen_ray.subjects.warp_cache import prepare, warp_device_name

_NEVER = 1e-8  # a bone with a smaller share than this never gets one
_SPREAD = 4  # rounds in which a vertex's gradient is mixed with its neighbours'


class LatticeMotion(nn.Module):
    """The corrections of a lattice, and their optimiser.

    A picture says something of a vertex by a few rays only, so gradients are averaged over the
    neighbourhood before each step (a Sobolev gradient): without that, corrections fit noise.

    Args:
        weight_rate: Adam step of the logits of the skinning weights; 0: they stay.
        shift_rate: Adam step of the shifts, metres; 0: they stay.
        turn_rate: Adam step of the changes of the unit normals; 0: they stay.
    """

    def __init__(
        self, lattice: Lattice, weight_rate: float, shift_rate: float, turn_rate: float
    ) -> None:
        super().__init__()
        self._lattice, self._device = lattice, lattice.weights.device
        prepare(warp_device_name(self._device), fit_kernels.__name__)
        self._start = lattice.weights.clamp_min(_NEVER).log()
        self.logits = nn.Parameter(torch.zeros_like(lattice.weights))
        self.shifts = nn.Parameter(torch.zeros_like(lattice.rest))
        self.turns = nn.Parameter(torch.zeros_like(lattice.normals))
        self._rates = (weight_rate, shift_rate, turn_rate)
        groups = [{"params": [parameter]} for parameter in self.parameters()]
        self._optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)

    def lattice(self) -> Lattice:
        """The lattice with its corrections, differentiable in them."""
        weights = (self._start + self.logits).softmax(1)
        return replace(
            self._lattice,
            weights=weights,
            rest=self._lattice.rest + self.shifts,
            normals=normalize(self._lattice.normals + self.turns, dim=-1),
        )

    def pose(
        self,
        bones: Tensor,  # [B, 24, 3, 4]
        camera: Camera,
    ) -> tuple[Tensor, Tensor]:  # [B, V, 3] camera space, [B, V, 3] unit, world
        """The posed vertices and their normals, differentiable in bones, camera and corrections;
        but what weights and bones do to the normals is left out, which hardly matters to them.

        `pose_vertices` and `pose_normals`, in an order that makes gradients of the weights cheap: a
        tenth of the time.
        """
        lattice = self.lattice()
        rest, normals = lattice.rest.T.contiguous(), lattice.normals.T.contiguous()
        rows = bones.permute(0, 2, 3, 1).flatten(0, 2)  # [12 B, 24]
        blended = (rows @ lattice.weights.T).view(len(bones), 3, 4, -1)
        turn, shift = blended.split((3, 1), 2)
        world = (turn * rest).sum(2) + shift[:, :, 0]  # [B, 3, V]
        turned = (turn.detach() * normals).sum(2)
        # torch's own norm over a middle dimension takes ten times as long
        length = turned.square().sum(1, keepdim=True).clamp_min(1e-12).sqrt()
        # as `to_camera`, but by columns: half the time, with the way back
        points = camera.rotation @ world + camera.translation[..., None]
        return points.mT, (turned / length).mT

    @torch.no_grad()
    def step(self, decay: float) -> None:
        """Follows the gradients that have come back, with rates of `decay` times their start."""
        parameters = list(self.parameters())
        widths = [parameter.shape[1] for parameter in parameters]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        gradients = torch.cat(found, 1)
        for parameter, group, rate, gradient in zip(
            parameters,
            self._optimiser.param_groups,
            self._rates,
            self._spread(gradients).split(widths, 1),
            strict=True,
        ):
            group["lr"] = decay * rate
            parameter.grad = gradient.contiguous()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {
            "logits": self.logits.detach(),
            "shifts": self.shifts.detach(),
            "turns": self.turns.detach(),
            "moments": self._optimiser.state_dict(),
        }

    @torch.no_grad()
    def resume(self, state: dict[str, Any]) -> None:
        self.logits.copy_(state["logits"])
        self.shifts.copy_(state["shifts"])
        self.turns.copy_(state["turns"])
        self._optimiser.load_state_dict(state["moments"])

    @cached_property
    def _mixing(self) -> list[Any]:  # [V, V] half a vertex's own, half its neighbours' mean
        mean = mean_of_neighbours(self._lattice.tets.cpu().numpy())
        half = csr_matrix(0.5 * mean + 0.5 * eye(mean.shape[0]), dtype=np.float32)
        parts = (torch.from_numpy(part) for part in (half.indptr, half.indices, half.data))
        return [wp.from_torch(part.to(self._device).contiguous()) for part in parts]

    def _spread(self, gradient: Tensor) -> Tensor:  # [V, D]
        width = gradient.shape[1]
        rows = pad(gradient, (0, fit_kernels.WIDTH - width))
        for _ in range(_SPREAD):
            mixed = torch.empty_like(rows)
            ends = wp.from_torch(rows), wp.from_torch(mixed)
            launch(fit_kernels.mix, len(rows), [*self._mixing, *ends], self._device)
            rows = mixed
        return rows[:, :width]
