"""Pictures of a subject show all of it, from all sides."""

from __future__ import annotations

import numpy as np
import torch
from bodies import capsule_body
from PIL import Image

from posegen_ray.config import RendererConfig
from posegen_ray.records import PoseBatch
from posegen_ray.subjects.gallery import pose_sheet, turntable, write_gif
from posegen_ray.subjects.render import Renderer, make_renderer
from posegen_ray.subjects.store import VoxelSubject

GREY = 237  # the background


def _renderer(subject: VoxelSubject) -> Renderer:
    return make_renderer(RendererConfig(), {subject.name: subject})


def test_a_turntable_goes_once_around(capsule_subject: VoxelSubject) -> None:
    pictures = turntable(
        capsule_subject.manifest, capsule_body(), _renderer(capsule_subject), 8, 96
    )
    assert pictures.shape == (8, 96, 96, 3)
    person = (np.abs(pictures.astype(int) - GREY) > 3).any(-1)
    assert person.any((1, 2)).all()
    edges = np.concatenate([person[:, 0], person[:, -1], person[:, :, 0], person[:, :, -1]], 1)
    assert not edges.any()  # nothing is cut off
    width = person.any(1).sum(1)
    assert width[0] > 1.3 * width[2]  # arms seen from the front and from the side
    # the back looks like the front in outline, but not in colour
    outlines = person[0] ^ person[4, :, ::-1]
    assert outlines.sum() < 0.15 * person[0].sum()
    both = person[0] & person[4]
    assert np.abs(pictures[0].astype(int) - pictures[4])[both].mean() > 10


def test_a_pose_sheet_has_every_pose_and_blank_rest(capsule_subject: VoxelSubject) -> None:
    poses = PoseBatch(torch.eye(3).repeat(5, 24, 1, 1), torch.zeros(5, 3))
    sheet = pose_sheet(
        capsule_subject.manifest, capsule_body(), _renderer(capsule_subject), poses, 3, 64
    )
    assert sheet.shape == (128, 192, 3)
    assert (sheet[64:, 128:] == GREY).all()
    assert all((sheet[64 * row : 64 * row + 64, :64] != GREY).any() for row in (0, 1))


def test_the_animation_holds_all_pictures(tmp_path) -> None:
    pictures = np.zeros((5, 16, 16, 3), np.uint8)
    pictures[:, 3] = np.arange(5)[:, None, None] * 50
    write_gif(pictures, tmp_path / "turn.gif")
    with Image.open(tmp_path / "turn.gif") as animation:
        assert animation.n_frames == 5
        assert animation.info["loop"] == 0
