"""Geometry of the demo's people: measures of a body, shells over it, lofted cloth, tubes.

Works in numpy on the rest pose (T-pose, metres, y up, facing +z, left = +x). A `Part` is a piece of
mesh with a painter, a function from surface points to colours, which
`posegen_ray.subjects.baking` turns into a texture, or with a texture from elsewhere.

Legend: V vertices, F triangles, U texture coordinates, N texels, R rings of A points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.subjects.meshes import smooth_normals

# the element types are by name only: numpy widens them in every other expression
Floats = npt.NDArray[Any]
Ints = npt.NDArray[Any]
Bools = npt.NDArray[Any]


@dataclass(frozen=True)
class Surface:
    """Points of a part's rest surface to be painted."""

    points: Floats  # [N, 3]
    normals: Floats  # [N, 3]
    uv: Floats  # [N, 2]


Painter = Callable[[Surface], Floats]  # -> [N, 4] RGBA in [0, 1]
Texture = npt.NDArray[np.uint8]  # [H, W, 4] RGBA, row 0 at v = 1
Region = Callable[[Floats], Floats]  # points [N, 3] -> metres inside (> 0) or outside (< 0), [N]


@dataclass(frozen=True)
class Part:
    """A piece of a person."""

    vertices: Floats  # [V, 3]
    weights: Floats  # [V, 24]
    faces: Ints  # [F, 3]
    uv: Floats  # [U, 2]
    uv_faces: Ints  # [F, 3]
    paint: Painter | Texture  # how its texture is painted, or the finished texture
    cutout: bool = False  # the texture's alpha cuts holes


@dataclass(frozen=True)
class Figure:
    """A body of one shape in its rest pose, with what a tailor measures."""

    name: str
    vertices: Floats  # [V, 3]
    faces: Ints  # [F, 3]
    weights: Floats  # [V, 24]
    uv: Floats  # [U, 2]
    uv_faces: Ints  # [F, 3]
    joints: Floats  # [24, 3]
    normals: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "normals", smooth_normals(self.vertices, self.faces))

    def joint(self, name: str) -> Floats:  # [3]
        return np.asarray(self.joints[JOINT[name]])

    @cached_property
    def crotch(self) -> float:
        """Height of the lowest point of the trunk."""
        trunk = (np.abs(self.vertices[:, 0]) < 0.012) & (
            self.vertices[:, 1] > self.joint("left_knee")[1]
        )
        return float(self.vertices[trunk, 1].min())

    @cached_property
    def waist(self) -> float:
        """Height of a trouser's waistband."""
        return float(0.35 * self.joint("spine1")[1] + 0.65 * self.joint("spine2")[1]) - 0.03

    @cached_property
    def armpit(self) -> float:
        """Height below which nothing belongs to an arm."""
        return float(self.joint("left_shoulder")[1]) - 0.12

    @cached_property
    def ankle(self) -> float:
        return float(self.joint("left_ankle")[1])

    def along_arm(self, fraction: float) -> float:
        """|x| of the point this far from shoulder (0) to wrist (1)."""
        start, end = self.joint("left_shoulder")[0], self.joint("left_wrist")[0]
        return float(start + fraction * (end - start))

    def along_leg(self, fraction: float) -> float:
        """Height of the point this far from hip (0) to ankle (1)."""
        start, end = self.joint("left_hip")[1], self.joint("left_ankle")[1]
        return float(start + fraction * (end - start))

    @cached_property
    def head(self) -> Bools:  # [V]
        return self.weights[:, JOINT["head"]] > 0.5

    @cached_property
    def chin(self) -> float:
        """Height of the chin."""
        points = self.vertices[self.head]
        front = points[:, 2] > 0.6 * points[:, 2].max() + 0.4 * points[:, 2].min()
        return float(points[front, 1].min())

    @cached_property
    def crown(self) -> float:
        return float(self.vertices[self.head, 1].max())

    @cached_property
    def skull(self) -> tuple[Floats, Floats]:
        """Centre of the head at the height of the eyes, and its half axes."""
        points = self.vertices[self.head]
        level = self.eye[1]
        upper = points[points[:, 1] > level - 0.01]
        back, front = upper[:, 2].min(), upper[:, 2].max() - 0.012  # without brows and lashes
        centre = np.array([0, level, (back + front) / 2], np.float32)
        width = float(upper[upper[:, 1] > level + 0.03, 0].max())
        axes = np.array([width, self.crown - level, (front - back) / 2], np.float32)
        return centre, axes

    @cached_property
    def eyeballs(self) -> Bools:  # [V]
        """Vertices of separate eye meshes; none on bodies without them."""
        count = len(self.vertices)
        links = scipy.sparse.coo_matrix(
            (np.ones(self.faces.size), (self.faces.ravel(), np.roll(self.faces, 1, 1).ravel())),
            (count, count),
        )
        number, label = connected_components(links, directed=False)
        eyes = np.zeros(count, bool)
        for component in range(number):
            members = label == component
            x = self.vertices[members, 0]
            if members.sum() < 500 and (x.min() > 0.005 or x.max() < -0.005):
                eyes |= members & self.head
        return eyes

    @cached_property
    def eye(self) -> Floats:  # [3], the left one
        left = self.eyeballs & (self.vertices[:, 0] > 0)
        if left.any():
            points = self.vertices[left]
            middle = (points.min(0) + points.max(0)) / 2
            return np.array([middle[0], middle[1], points[:, 2].max()], np.float32)
        points = self.vertices[self.head]
        height = self.chin + 0.5 * (self.crown - self.chin)
        return np.array([0.033, height, points[:, 2].max() - 0.02], np.float32)

    def borrow_weights(
        self,
        points: Floats,  # [N, 3]
        reach: float,  # metres over which the body's weights are averaged
    ) -> Floats:  # [N, 24]
        """Skinning weights for cloth: a Gaussian average of the nearest ones."""
        step = 8 if reach > 0.05 else 4
        samples, weights = self.vertices[::step], self.weights[::step]
        squared = (points**2).sum(1, keepdims=True) + (samples**2).sum(1) - 2 * points @ samples.T
        distance = np.sqrt(np.maximum(squared, 0))
        distance -= distance.min(1, keepdims=True)
        blended = np.exp(-0.5 * (distance / reach) ** 2).astype(np.float32) @ weights
        return np.asarray(blended / blended.sum(1, keepdims=True), np.float32)


def measure(body: BodyModel, shape: Tensor) -> Figure:  # shape [S]
    """The figure of a body of that shape."""
    uv, uv_faces = body.uv, body.uv_faces
    if uv is None or uv_faces is None:
        uv, uv_faces = _triangle_atlas(body.faces.shape[0])
    with torch.no_grad():
        vertices = body.rest_vertices(shape[None].to(body.template))[0]
        joints = body.rest_joints(shape[None].to(body.template))[0]
    return Figure(
        body.name,
        vertices.cpu().numpy(),
        body.faces.cpu().numpy().astype(np.int64),
        body.skinning_weights.cpu().numpy(),
        uv.cpu().numpy(),
        uv_faces.cpu().numpy().astype(np.int64),
        joints.cpu().numpy(),
    )


def _triangle_atlas(count: int) -> tuple[Tensor, Tensor]:
    """Texture coordinates for a body without any: two triangles to a square cell of a grid."""
    side = int(np.ceil(np.sqrt((count + 1) // 2)))
    face = np.arange(count)
    cell, second = face // 2, (face % 2).astype(bool)
    gap = 0.12
    corners = np.where(
        second[:, None, None],
        np.array([[1 - gap, 1 - gap], [2.2 * gap, 1 - gap], [1 - gap, 2.2 * gap]]),
        np.array([[gap, gap], [1 - 2.2 * gap, gap], [gap, 1 - 2.2 * gap]]),
    )
    origin = np.stack([cell % side, cell // side], -1)[:, None]
    uv = ((corners + origin) / side).reshape(-1, 2).astype(np.float32)
    return torch.from_numpy(uv), torch.arange(3 * count).view(-1, 3)


def shell(
    figure: Figure,
    region: Region,
    thickness: float | Floats,  # metres; a number or one for each of the body's vertices
    paint: Painter,
    smoothing: int = 4,
) -> Part:
    """Cloth that follows the body: its faces in the region, moved out along the normals.

    Smoothing steps let the cloth bridge hollows; afterwards it is pushed out again wherever it
    came nearer than half the thickness.
    """
    vertices, normals, faces = figure.vertices, figure.normals, figure.faces
    inside = region(vertices)
    chosen = (inside[faces].max(1) > -0.02) & ~figure.eyeballs[faces].any(1)
    used = np.unique(faces[chosen])
    lookup = np.full(len(vertices), -1)
    lookup[used] = np.arange(len(used))
    local = lookup[faces[chosen]]
    depth = np.broadcast_to(np.asarray(thickness, np.float32), len(vertices))[used][:, None]
    moved = vertices[used] + normals[used] * depth
    count = len(used)
    links = scipy.sparse.coo_matrix(
        (np.ones(local.size), (local.ravel(), np.roll(local, 1, 1).ravel())), (count, count)
    ).tocsr()
    links = ((links + links.T) > 0).astype(np.float32)
    degree = np.asarray(links.sum(1))
    for _ in range(smoothing):
        moved = 0.4 * moved + 0.6 * (links @ moved) / degree
    gap = ((moved - vertices[used]) * normals[used]).sum(1, keepdims=True)
    moved = moved + normals[used] * np.maximum(0.6 * depth - gap, 0)

    def cut(surface: Surface) -> Floats:
        colour = paint(surface)
        colour[:, 3] *= np.clip(region(surface.points) / 0.003 + 0.5, 0, 1)
        return colour

    return Part(
        moved.astype(np.float32),
        figure.weights[used],
        local,
        figure.uv,
        figure.uv_faces[chosen],
        cut,
        cutout=True,
    )


def loft(
    rings: Floats,  # [R, A, 3]
    weights: Floats,  # [R * A, 24]
    paint: Painter,
    closed: bool = True,  # the last point of a ring joins the first
    cutout: bool = False,
) -> Part:
    """A skin over rings of points; counter-clockwise rings (seen from the last one) face out.

    Texture coordinates: u along the ring, v along the rings.
    """
    number, around = rings.shape[:2]
    steps = around if closed else around - 1
    row, column = np.meshgrid(np.arange(number - 1), np.arange(steps), indexing="ij")

    def quads(width: int, wrap: bool) -> Ints:
        right = (column + 1) % width if wrap else column + 1
        a, b = row * width + column, row * width + right
        c, d = (row + 1) * width + right, (row + 1) * width + column
        return np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3)

    u, v = np.meshgrid(np.linspace(0.01, 0.99, steps + 1), np.linspace(0.01, 0.99, number))
    uv = np.stack([u.ravel(), v.ravel()], -1).astype(np.float32)
    return Part(
        rings.reshape(-1, 3).astype(np.float32),
        weights,
        quads(around, closed),
        uv,
        quads(steps + 1, False),
        paint,
        cutout,
    )


def hull_radius(
    points: Floats,  # [N, 2]
    centre: Floats,  # [2]
    angles: Floats,  # [A] radians, from the first axis towards the second
) -> Floats:  # [A]
    """Distance from the centre to the convex hull's edge in each direction."""
    probes = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    directions = np.stack([np.cos(probes), np.sin(probes)])
    support = ((points - centre) @ directions).max(0)  # [90]
    cosine = np.cos(angles[:, None] - probes[None])
    distance = np.where(cosine > 0.05, support / np.maximum(cosine, 0.05), np.inf)
    return np.asarray(distance.min(1), np.float32)


def upright_rings(
    figure: Figure,
    levels: Floats,  # [R] heights, from top to bottom
    ease: Floats,  # [R] metres that the cloth stands off the body
    points: Bools,  # [V] which of the body's vertices are enclosed
    around: int = 64,
    drape: bool = True,  # cloth hangs: no ring is narrower than the one above
) -> Floats:  # [R, A, 3]
    """Rings around the convex outline of the body at each height."""
    vertices = figure.vertices[points]
    angles = np.linspace(0, 2 * np.pi, around, endpoint=False).astype(np.float32)
    rings = np.zeros((len(levels), around, 3), np.float32)
    before = np.zeros(around, np.float32)
    first = vertices[np.abs(vertices[:, 1] - levels[0]) < 0.05]
    middle = (first.min(0) + first.max(0))[[0, 2]] / 2
    for index, (level, slack) in enumerate(zip(levels, ease, strict=True)):
        slab = vertices[np.abs(vertices[:, 1] - level) < 0.03][:, [0, 2]]
        radius = before
        if len(slab) > 3:
            radius = hull_radius(slab, middle, angles) + slack
        if drape:
            radius = np.maximum(radius, before)
        before = radius
        # +x towards -z: counter-clockwise seen from below, where the last ring is
        rings[index, :, 0] = middle[0] + radius * np.cos(angles)
        rings[index, :, 2] = middle[1] + radius * np.sin(angles)
        rings[index, :, 1] = level
    return rings


def tube(
    path: Floats,  # [R, 3]
    radius: Floats,  # [R]
    weights: Floats,  # [R, 24]
    paint: Painter,
    around: int = 12,
) -> Part:
    """A round tube along a path."""
    forward = np.gradient(path, axis=0)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    helper = np.where(np.abs(forward[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]])
    side = np.cross(forward, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(forward, side)
    angles = np.linspace(0, 2 * np.pi, around, endpoint=False)
    circle = np.cos(angles)[None, :, None] * side[:, None] + (
        np.sin(angles)[None, :, None] * other[:, None]
    )
    rings = path[:, None] + radius[:, None, None] * circle
    return loft(rings.astype(np.float32), np.repeat(weights, around, 0), paint)


def rigid(count: int, joint: str) -> Floats:  # [count, 24]
    """Skinning weights of something fixed to one joint."""
    weights = np.zeros((count, NUM_JOINTS), np.float32)
    weights[:, JOINT[joint]] = 1
    return weights
