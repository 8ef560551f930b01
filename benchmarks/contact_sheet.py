"""Draws motion clips as rows of posed bodies, to be looked at.

    python benchmarks/contact_sheet.py OUT.png [CLIP_OR_FILE ...] [--columns 8] [--body anny]

Without names: every default clip. The camera stands still for a clip, to the front left of where
the person faces in its first frame; the checkered floor is y = 0. A triangle count of tens of
thousands and a supersampled z-buffer make it about a second a row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from posegen_ray import assets
from posegen_ray.body import load_body
from posegen_ray.body.camera import Camera, orbit, rays
from posegen_ray.body.model import BodyModel
from posegen_ray.config import BodyConfig
from posegen_ray.motion import Clip, read_clip
from posegen_ray.subjects.raycast import TexturedMesh, raycast

SIZE = 176  # pixels of a picture's edge
LEFT, RIGHT, TRUNK = (205, 90, 70), (70, 110, 200), (200, 195, 185)  # the person's own sides


def coloured_mesh(body: BodyModel) -> TexturedMesh:
    """The mean body, its left limbs red and its right limbs blue."""
    joint = body.skinning_weights[body.faces].sum(1).argmax(1)  # [F]
    side = torch.zeros(24, dtype=torch.int32)
    side[[1, 4, 7, 10, 16, 18, 20, 22]] = 1
    side[[2, 5, 8, 11, 17, 19, 21, 23]] = 2
    corners = body.template[body.faces]
    facing = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.zeros_like(body.template)
    for corner in range(3):
        normals.index_add_(0, body.faces[:, corner], facing)
    textures = torch.full((3, 2, 2, 4), 255, dtype=torch.uint8)
    for layer, colour in enumerate((TRUNK, LEFT, RIGHT)):
        textures[layer, ..., :3] = torch.tensor(colour, dtype=torch.uint8)
    return TexturedMesh(
        body.template,
        torch.nn.functional.normalize(normals, dim=1),
        body.skinning_weights,
        body.faces.int(),
        torch.full((len(body.faces), 3, 2), 0.5),
        side[joint],
        textures,
        torch.zeros(3, dtype=torch.uint8),
    )


def floor(camera: Camera) -> Tensor:  # [B, H, W, 3] in [0, 1]
    """A checkered floor at y = 0 under a plain sky; squares of half a metre."""
    origins, directions = rays(camera)
    distance = -origins[:, None, None, 1] / directions[..., 1]
    points = origins[:, None, None] + distance[..., None] * directions
    checks = ((points[..., 0] * 2).floor() + (points[..., 2] * 2).floor()) % 2
    shade = torch.where((distance > 0) & (distance < 12), 0.72 + 0.1 * checks, 0.95)
    return shade[..., None].expand(*shade.shape, 3)


def draw_clip(
    body: BodyModel, mesh: TexturedMesh, clip: Clip, columns: int
) -> np.ndarray:  # [SIZE, columns * SIZE, 3] uint8
    """Evenly spaced frames of a clip."""
    frames = torch.linspace(0, len(clip) - 1, columns).round().long()
    poses = clip.poses[frames]
    with torch.no_grad():
        posed = body(poses.rotations, torch.zeros(1, body.num_shape), poses.translation)
    ahead = posed.bones[0, 0, :, 2]  # the pelvis' z axis in the world
    facing = torch.atan2(ahead[0], ahead[2])
    target = posed.joints[:, 0].clone()
    target[:, 1] = 0.8
    ones = torch.ones(columns)
    camera = orbit(
        target, (facing + 0.9) * ones, 0.2 * ones, 0 * ones, 5.0 * ones, 2.1 * SIZE * ones,
        torch.full((columns, 2), SIZE / 2), SIZE, SIZE,
    )  # fmt: skip
    rgba = raycast(mesh, posed.bones, camera)
    picture = rgba[..., :3] + (1 - rgba[..., 3:]) * floor(camera)
    strip = picture.clamp(0, 1).permute(1, 0, 2, 3).flatten(1, 2)
    return np.asarray((strip * 255).byte())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("clips", nargs="*")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--body", default="anny")
    options = parser.parse_args(arguments)
    body = load_body(BodyConfig(name=options.body), print)
    mesh = coloured_mesh(body)
    folder = assets.fetch("mocap-deepmimic")
    files = sorted(folder.rglob("humanoid3d_*.txt"))
    if options.clips:
        known = {file.stem.removeprefix("humanoid3d_"): file for file in files}
        files = [known.get(name, Path(name)) for name in options.clips]
    sheet = Image.new("RGB", (options.columns * SIZE, len(files) * SIZE), "white")
    for row, file in enumerate(files):
        clip = read_clip(file)
        sheet.paste(Image.fromarray(draw_clip(body, mesh, clip, options.columns)), (0, row * SIZE))
        text = f"{clip.name}  {len(clip) / clip.frames_per_second:.1f} s"
        ImageDraw.Draw(sheet).text((4, row * SIZE + 4), text, fill="black")
        print(text)
    sheet.save(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
