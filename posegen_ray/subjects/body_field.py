"""The field that a fit starts from: grey, and as dense as the naked body."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import warp as wp
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.config import RegionConfig
from posegen_ray.subjects import fit_kernels
from posegen_ray.subjects.canonical import Bools, CanonicalBody, Floats, canonical_body
from posegen_ray.subjects.field import CUBE, LOGIT_LIMIT, Field, number
from posegen_ray.subjects.warp_cache import prepare

_INITIAL_SOFTNESS = 0.004  # metres over which the initial body surface fades


def body_field(
    body: BodyModel,
    shape: Tensor,  # [S]
    config: RegionConfig,
    possible: Callable[[Floats], Bools] | None = None,
) -> Field:
    """A grey field whose density follows the body surface: where fitting starts.

    Args:
        possible: tells from the centres [N, 3] of cubes (CUBE cells wide, canonical pose) which of
            those outside the body may hold a part of the person [N]. None: all.
    """
    surface = canonical_body(body, shape)
    # the grid begins at a multiple of 12 cells: then x = 0, between the legs, is a plane of it, and
    # a face of blocks
    block, edge = 12 * config.voxel, CUBE * config.voxel
    margin = config.shell + 3 * config.voxel
    low = np.floor((surface.vertices.min(0) - margin) / block) * block
    count = np.ceil((surface.vertices.max(0) + margin - low) / edge).astype(int)
    cubes = np.argwhere(np.ones(count, bool))
    centres = low + (cubes + 0.5) * edge
    reach = 0.5 * math.sqrt(3) * edge
    distance = _distance(surface, centres, margin + reach)
    near = (distance < config.shell + reach) & (distance > -config.inner - reach)
    if possible is not None:
        outside = np.flatnonzero(near & (distance > 0))
        near[outside] = possible(centres[outside])

    # only near the surface does a vertex's own distance matter; elsewhere its cube's will do, but
    # the region's rim is then no finer than cubes
    steep = np.abs(distance) < LOGIT_LIMIT * _INITIAL_SOFTNESS + reach
    grid = np.full(CUBE * count + 1, np.inf, np.float32)
    exact = np.zeros(grid.shape, bool)
    for offset in np.ndindex(CUBE + 1, CUBE + 1, CUBE + 1):
        grid[tuple((CUBE * cubes[near] + offset).T)] = distance[near]
        exact[tuple((CUBE * cubes[near & steep] + offset).T)] = True
    places, of_cube = low + np.argwhere(exact) * config.voxel, grid[exact]
    away = _distance(surface, places, margin, signed=False)
    # on the other side of the surface than the cube's centre it would be farther from it than this
    unsure = away + np.abs(of_cube) <= reach
    away = np.copysign(away, of_cube)
    away[unsure] = _distance(surface, places[unsure], margin)
    grid[exact] = away
    wanted = np.isfinite(grid)
    distance = grid[wanted]
    inside = (distance < config.shell) & (distance > -config.inner)
    wanted[wanted] = inside
    depth = -torch.from_numpy(distance[inside])
    values = torch.full((len(depth), 4), 0.5)
    values[:, 3] = (depth / _INITIAL_SOFTNESS).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    x, y, z = low.tolist()
    return Field(values, number(torch.from_numpy(wanted)), (x, y, z), config.voxel)


def _distance(
    body: CanonicalBody,
    places: Floats,  # [N, 3]
    farthest: float,
    signed: bool = True,
) -> np.ndarray:  # [N] float32, negative inside
    prepare("cpu", fit_kernels.__name__)

    mesh = wp.Mesh(
        wp.array(body.vertices.astype(np.float32), dtype=wp.vec3, device="cpu"),
        wp.array(body.faces.astype(np.int32).reshape(-1), dtype=wp.int32, device="cpu"),
        # signs by the nearest face's normal are wrong half-way between two limbs
        support_winding_number=signed,
    )
    distance = np.empty(len(places), np.float32)
    wp.launch(
        fit_kernels.signed_distance,
        len(places),
        [
            mesh.id,
            wp.array(places.astype(np.float32), dtype=wp.vec3, device="cpu"),
            farthest,
            int(signed),
            wp.array(distance, dtype=float, device="cpu", copy=False),
        ],
        device="cpu",
    )
    return distance
