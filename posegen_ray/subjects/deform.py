"""The lattice: tetrahedra around the body that carry skinning into space.

Inside each posed tetrahedron the way back to the canonical pose is one affine map, continuous
across faces. A ray is followed only through the lattice, which covers the field's content and
nothing else (a tetrahedral cage as in VolTeMorph, Garbin et al. 2022). Cubes of CUBE field cells
have five tetrahedra each; cubes of even parity (x + y + z) come first, and the five of cube n are
5 n to 5 n + 4, always in the order of `PATTERNS`.

Legend: V lattice vertices, T tetrahedra, N cubes, B batch. Knows nothing of rays or colours.
`build_lattice` makes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from posegen_ray.subjects.field import CUBE

# corner c of a cube lies at its bits (x, y, z) = (c >> 2 & 1, c >> 1 & 1, c & 1)
CORNERS = np.array([(c >> 2 & 1, c >> 1 & 1, c & 1) for c in range(8)])
FACES = np.array([(1, 2, 3), (0, 3, 2), (0, 1, 3), (0, 2, 1)])  # opposite each corner, outwards


def _patterns() -> npt.NDArray[np.int64]:  # [2, 5, 4]
    """Cube corners of the tetrahedra of even and odd cubes, positively oriented.

    Face diagonals join the corners of even parity in the grid, so that neighbours agree.
    """
    parity = CORNERS.sum(1) % 2
    patterns = []
    for odd_cube in (0, 1):
        tips = np.flatnonzero(parity != odd_cube)
        five = [np.flatnonzero(parity == odd_cube)]
        five += [np.array([tip, tip ^ 4, tip ^ 2, tip ^ 1]) for tip in tips]
        for tet in five:
            if np.linalg.det(CORNERS[tet[1:]] - CORNERS[tet[0]]) < 0:
                tet[2:] = tet[[3, 2]]
        patterns.append(five)
    return np.array(patterns)


PATTERNS = _patterns()
PATTERN_PLACES = CUBE * CORNERS[PATTERNS]  # [2, 5, 4, 3] in cells from the cube's low corner


@dataclass(frozen=True)
class Lattice:
    """Tetrahedra with skinning weights at their corners."""

    canonical: Tensor  # [V, 3] metres, canonical pose: where the field is
    rest: Tensor  # [V, 3] metres, T-pose: where skinning starts from
    weights: Tensor  # [V, 24] rows sum to 1
    normals: Tensor  # [V, 3] unit: where the body's surface near it looks in the T-pose
    tets: Tensor  # [T, 4] int32, positively oriented in the canonical pose
    neighbours: Tensor  # [T, 4] int32: tetrahedron across the face opposite each corner; -1: none
    cubes: Tensor  # [N, 3] int32: places in units of CUBE cells of the field; T = 5 N

    def to(self, device: torch.device | str) -> Lattice:
        return Lattice(*(getattr(self, name).to(device) for name in LATTICE_TENSORS))

    @cached_property
    def skin(self) -> Tensor:  # [24 * 4, V]
        """What the bones' matrices are multiplied with, to move the vertices."""
        rest = pad(self.rest, (0, 1), value=1.0)
        return (self.weights[..., None] * rest[:, None]).flatten(1).T.contiguous()

    @cached_property
    def turn(self) -> Tensor:  # [24 * 3, V]
        """The same for the bones' rotations and the normals."""
        return (self.weights[..., None] * self.normals[:, None]).flatten(1).T.contiguous()

    @property
    def even(self) -> int:
        """How many cubes are of even parity; they come first."""
        return int((self.cubes.sum(1) % 2 == 0).sum())

    @property
    def boundary(self) -> Tensor:  # [F, 4] int32
        """Outer faces: 4 * tetrahedron + the corner opposite the face, then the face's vertices,
        counter-clockwise from outside."""
        tet, corner = (self.neighbours < 0).nonzero().unbind(1)
        faces = torch.from_numpy(FACES).to(corner.device)[corner]
        vertices = self.tets[tet].long().gather(1, faces)
        return torch.cat([(4 * tet + corner)[:, None], vertices], 1).int().contiguous()

    @property
    def neighbouring_faces(self) -> Tensor:  # [T, 4] int32
        """What each face is called in the tetrahedron across it, as in `boundary`; -1: none."""
        across = self.neighbours.long()
        back = across[across.clamp_min(0)] == torch.arange(len(across), device=across.device).view(
            -1, 1, 1
        )
        return torch.where(across < 0, -1, 4 * across + back.int().argmax(-1)).int().contiguous()


LATTICE_TENSORS = ("canonical", "rest", "weights", "normals", "tets", "neighbours", "cubes")


def pose_vertices(
    lattice: Lattice,
    bones: Tensor,  # [B, 24, 3, 4]
) -> Tensor:  # [B, V, 3] where bones lead
    """Linear blend skinning. Differentiable in `bones`."""
    return _blend(lattice.skin, bones)


def pose_normals(
    lattice: Lattice,
    bones: Tensor,  # [B, 24, 3, 4]
) -> Tensor:  # [B, V, 3] unit
    """The normals after skinning. Differentiable in `bones`."""
    normals: Tensor = normalize(_blend(lattice.turn, bones[..., :3]), dim=-1)
    return normals


def _blend(
    columns: Tensor,  # [24 D, V]
    bones: Tensor,  # [B, 24, 3, D]
) -> Tensor:  # [B, V, 3]
    """One product for all bones: blending matrices for each vertex first takes several times as
    long. One for each picture: then its numbers do not depend on what is drawn beside it."""
    rows = bones.transpose(1, 2).flatten(2)  # [B, 3, 24 D]
    moved = [row @ columns for row in rows]
    for places in moved:
        if places.requires_grad:  # a product of two transposed matrices takes four times as long
            places.register_hook(Tensor.contiguous)
    return torch.stack([places.T for places in moved])
