"""Textures: painting the rest-pose point under every texel, so that patterns run across UV seams
and fit every body shape, and putting a person's parts together as one mesh.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import warp as wp
from PIL import Image

from posegen_ray.subjects import raycast_kernels as kernels
from posegen_ray.subjects.meshes import smooth_normals
from posegen_ray.subjects.raycast import TexturedMesh, struct_array
from posegen_ray.subjects.tailoring import Floats, Ints, Part, Surface
from posegen_ray.subjects.warp_cache import prepare

TEXTURE_SIZE = 512
_TEXEL = 0.0025  # metres: small parts are painted no finer than this
_PADDING = 3  # texels painted beyond an island's border, so that bilinear lookups never see black


def _texels(uv: Floats, uv_faces: Ints, size: int) -> tuple[Ints, Ints, Floats]:
    """Which texel shows which point: texel index [N], triangle [N], barycentric weights [N, 3]."""
    prepare("cpu", kernels.__name__)
    flat = np.concatenate([uv[:, :1] * size, (1 - uv[:, 1:]) * size], 1).astype(np.float32)
    points = torch.from_numpy(np.concatenate([flat, np.ones_like(flat[:, :1])], 1))[None]
    records = struct_array(kernels.View, 1)
    records["focal"] = 1
    z_buffer = torch.full((1, size, size), -1, dtype=torch.int64)
    faces = torch.from_numpy(uv_faces.astype(np.int32))
    wp.launch(
        kernels.fill_z_buffer,
        dim=(1, len(uv_faces)),
        inputs=[
            wp.from_torch(points.contiguous(), dtype=wp.vec3),
            wp.from_torch(faces),
            wp.zeros(len(uv_faces), dtype=wp.int32, device="cpu"),
            wp.zeros((1, 1, 1), dtype=wp.float32, device="cpu"),
            wp.zeros((1, 1, 1, 1), dtype=wp.uint8, device="cpu"),
            wp.zeros(1, dtype=wp.uint8, device="cpu"),
            wp.array(records, dtype=kernels.View, device="cpu"),
            size,
            size,
        ],
        outputs=[wp.from_torch(z_buffer, dtype=wp.uint64)],
        device="cpu",
    )
    keys = z_buffer[0].numpy()
    # source: for each texel, the covered texel that it shows (its own, or a neighbour's)
    source = np.where(keys == -1, -1, np.arange(size * size).reshape(size, size))
    for _ in range(_PADDING):
        grown = source.copy()
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown = np.where(grown < 0, np.roll(source, shift, axis), grown)
        source = grown
    texel = np.flatnonzero(source.ravel() >= 0)
    source = source.ravel()[texel]
    triangle = keys.ravel()[source] & 0xFFFFFFFF
    source_row, source_column = np.divmod(source, size)
    corner = flat[uv_faces[triangle]].astype(np.float64)
    at = np.stack([source_column + 0.5, source_row + 0.5], -1)
    one, two, here = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0], at - corner[:, 0]
    area = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
    of_b = (here[:, 0] * two[:, 1] - here[:, 1] * two[:, 0]) / area
    of_c = (one[:, 0] * here[:, 1] - one[:, 1] * here[:, 0]) / area
    return texel, triangle, np.stack([1 - of_b - of_c, of_b, of_c], -1).astype(np.float32)


def bake(part: Part, size: int = TEXTURE_SIZE) -> npt.NDArray[np.uint8]:  # [size, size, 4]
    """The part's texture: painted, or scaled to size."""
    if isinstance(part.paint, np.ndarray):
        scaled = Image.fromarray(part.paint).resize((size, size), Image.Resampling.BOX)
        return np.asarray(scaled)
    edges = part.vertices[part.faces]
    normal = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    needed = np.sqrt(0.5 * np.linalg.norm(normal, axis=1).sum()) / _TEXEL
    repeat = 1
    while part.uv_faces.max() < 10_000 and size % (2 * repeat) == 0 and size / repeat > 2 * needed:
        repeat *= 2
    inner = size // repeat
    texel, triangle, weights = _texels(part.uv, part.uv_faces, inner)
    normals = smooth_normals(part.vertices, part.faces)
    corner = part.faces[triangle]
    surface = Surface(
        np.einsum("nk,nkc->nc", weights, part.vertices[corner]),
        np.einsum("nk,nkc->nc", weights, normals[corner]),
        np.einsum("nk,nkc->nc", weights, part.uv[part.uv_faces[triangle]]),
    )
    colour = np.clip(part.paint(surface), 0, 1)
    texture = np.zeros((inner * inner, 4), np.uint8)
    texture[texel] = (colour * 255 + 0.5).astype(np.uint8)
    squares = texture.reshape(inner, inner, 4)
    return np.asarray(squares.repeat(repeat, 0).repeat(repeat, 1))


def assemble(parts: list[Part], size: int = TEXTURE_SIZE) -> TexturedMesh:
    """One mesh from all parts, each with its own texture layer."""
    start = np.cumsum([0] + [len(part.vertices) for part in parts])
    return TexturedMesh(
        vertices=torch.from_numpy(np.concatenate([part.vertices for part in parts])),
        normals=torch.from_numpy(
            np.concatenate([smooth_normals(part.vertices, part.faces) for part in parts])
        ),
        weights=torch.from_numpy(np.concatenate([part.weights for part in parts])),
        faces=torch.from_numpy(
            np.concatenate(
                [part.faces + offset for part, offset in zip(parts, start[:-1], strict=True)]
            )
        ).int(),
        uv=torch.from_numpy(np.concatenate([part.uv[part.uv_faces] for part in parts])),
        layers=torch.from_numpy(
            np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])
        ).int(),
        textures=torch.from_numpy(np.stack([bake(part, size) for part in parts])),
        cutout=torch.tensor([int(part.cutout) for part in parts], dtype=torch.uint8),
    )
