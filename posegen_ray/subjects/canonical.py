"""The canonical pose, in which fields are stored: the T-pose with the legs apart.

In the T-pose itself the legs of wide trousers overlap, and what lies between the thighs belongs to
both; no field can hold two things in one place.

Legend: V vertices, N places. Knows nothing of fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.subjects.meshes import largest_piece, smooth_normals

LEGS_APART = 0.2  # radians: how far each leg is turned outwards at the hip

_NEIGHBOURHOOD = 6  # vertices that give a place near the body its weights
_TIGHT, _LOOSE = 0.015, 0.035  # metres: nearer than this moves with the skin; farther is loose
_REACH = 0.3  # of the distance to the body: how widely loose cloth averages over it
_EVERY = 16  # of the vertices stands for its neighbourhood in such an average
_PLACES_AT_ONCE = 1024  # in such an average: what it works on fits into the processor's cache

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CanonicalBody:
    """A body's largest piece in the canonical pose."""

    vertices: Floats  # [V, 3] metres, canonical pose
    faces: Ints  # [F, 3]
    vertex_weights: Floats  # [V, 24] skinning weights
    vertex_normals: Floats  # [V, 3] unit, of the surface in the T-pose
    bones: Floats  # [24, 3, 4] T-pose -> canonical pose

    def weights(
        self,
        places: Floats,  # [N, 3] canonical pose
    ) -> tuple[Floats, Floats]:  # [N, 24] rows sum to 1, [N] metres to the nearest vertex
        """Skinning weights of any place: those of the nearest vertices, mixed by nearness. Away
        from the body only loose cloth and hair can be: they follow all that is about as near."""
        weights, _, distance = self.weights_and_normals(places)
        return weights, distance

    def weights_and_normals(
        self,
        places: Floats,  # [N, 3] canonical pose
    ) -> tuple[Floats, Floats, Floats]:  # [N, 24], [N, 3] not normalised, [N] metres
        """The same, and where the surface near the places looks in the T-pose."""
        distance, nearest = self._tree.query(places, k=_NEIGHBOURHOOD)
        share = 1 / np.maximum(distance, 2e-3) ** 4
        share /= share.sum(1, keepdims=True)
        distance = distance[:, 0]
        rows = np.arange(0, nearest.size + 1, _NEIGHBOURHOOD)
        size = (len(places), len(self.vertices))
        mixing = csr_matrix((share.ravel(), nearest.ravel(), rows), size)
        weights, normals = mixing @ self.vertex_weights, mixing @ self.vertex_normals
        weights /= weights.sum(1, keepdims=True)
        loose = np.clip((distance - _TIGHT) / (_LOOSE - _TIGHT), 0, 1)[:, None]
        far = np.flatnonzero(loose)
        for start in range(0, len(far), _PLACES_AT_ONCE):
            rows = far[start : start + _PLACES_AT_ONCE]
            around = self._around(places[rows], distance[rows])
            weights[rows] += loose[rows] * (around - weights[rows])
        return weights, normals, distance

    def to_rest(
        self,
        places: Floats,  # [N, 3] canonical pose
        weights: Floats,  # [N, 24] their skinning weights
    ) -> Floats:  # [N, 3]
        """Where linear blend skinning has to start from in the T-pose to end at these places."""
        blended = _blend(weights, self.bones)
        rest = np.linalg.solve(blended[..., :3], places[..., None] - blended[..., 3:])
        return np.asarray(rest[..., 0], np.float64)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.vertices)

    def _around(
        self,
        places: Floats,  # [N, 3]
        distance: Floats,  # [N]
    ) -> Floats:  # [N, 24]
        """A Gaussian average over the surface, by how much farther than the nearest it is."""
        samples = self.vertices[::_EVERY].astype(np.float32)
        here = places.astype(np.float32)
        squared = (here**2).sum(1)[:, None] + (samples**2).sum(1) - 2 * here @ samples.T
        away = np.sqrt(np.maximum(squared, 0))
        away -= away.min(1, keepdims=True)
        away /= (_REACH * distance[:, None]).astype(np.float32)
        share = np.exp(-0.5 * away**2)
        mixed = share @ self.vertex_weights[::_EVERY].astype(np.float32)
        return np.asarray(mixed / mixed.sum(1, keepdims=True), np.float64)


def canonical_body(
    body: BodyModel,
    shape: Tensor,  # [S]
) -> CanonicalBody:
    """Poses the body by linear blend skinning alone, as all of a subject is posed."""
    angles = torch.zeros(1, NUM_JOINTS, 3)
    angles[0, JOINT["left_hip"], 2], angles[0, JOINT["right_hip"], 2] = LEGS_APART, -LEGS_APART
    with torch.no_grad():
        bones = body(from_axis_angle(angles), shape[None]).bones[0].cpu().numpy().astype(np.float64)
        rest = body.rest_vertices(shape[None])[0].cpu().numpy().astype(np.float64)
    rest, faces, kept = largest_piece(rest, body.faces.cpu().numpy())
    weights = body.skinning_weights.cpu().numpy()[kept].astype(np.float64)
    blended = _blend(weights, bones)
    vertices = np.einsum("vrc,vc->vr", blended[..., :3], rest) + blended[..., 3]
    return CanonicalBody(vertices, faces, weights, smooth_normals(rest, faces), bones)


def _blend(
    weights: Floats,  # [N, 24]
    bones: Floats,  # [24, 3, 4]
) -> Floats:  # [N, 3, 4]
    return (weights @ bones.reshape(NUM_JOINTS, 12)).reshape(-1, 3, 4)
