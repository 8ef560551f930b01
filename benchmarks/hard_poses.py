"""A sheet of poses in which limbs touch and cross, to look at.

    python benchmarks/hard_poses.py [person ...] [--out FILE] [hydra overrides]

Rows: people; columns: arms crossed, hand on hip, squat, cartwheel (two frames). The people are
fitted when missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.compose import compose_config
from posegen_ray.jobs import FitPerson
from posegen_ray.motion.splits import load_splits
from posegen_ray.records import PoseBatch
from posegen_ray.studio import Studio
from posegen_ray.subjects.gallery import draw
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject

SIZE = 224
# axis-angle (radians) of the local rotations that differ from the T-pose
ARMS_CROSSED = {
    "left_shoulder": (0.0, -0.55, -1.05),
    "right_shoulder": (0.0, 0.45, 1.1),
    "left_elbow": (0.0, -1.9, 0.0),
    "right_elbow": (0.0, 1.9, 0.0),
}
HAND_ON_HIP = {
    "left_shoulder": (0.0, 0.35, -0.8),
    "left_elbow": (0.0, -0.5, -1.6),
    "right_shoulder": (0.0, 0.0, 1.25),
    "left_hip": (0.0, 0.0, 0.12),
}
SQUAT = {
    "left_hip": (-1.9, 0.0, 0.35),
    "right_hip": (-1.9, 0.0, -0.35),
    "left_knee": (2.2, 0.0, 0.0),
    "right_knee": (2.2, 0.0, 0.0),
    "left_ankle": (-0.5, 0.0, 0.0),
    "right_ankle": (-0.5, 0.0, 0.0),
    "spine1": (0.4, 0.0, 0.0),
    "left_shoulder": (0.0, -1.3, -0.3),
    "right_shoulder": (0.0, 1.3, 0.3),
}
CARTWHEEL = (0.4, 0.6)  # moments of the clip, as shares of it


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    words = list(arguments)
    out = "hard_poses.png"
    if "--out" in words:
        at = words.index("--out")
        out = words[at + 1]
        del words[at : at + 2]
    names = [word for word in words if "=" not in word] or ["ben", "fay"]
    config = compose_config(["runtime=inprocess", *[word for word in words if "=" in word]])
    clip = next(c for c in load_splits(config.motion).ood if c.name.startswith("cartwheel"))
    moments = [round(share * (len(clip.poses) - 1)) for share in CARTWHEEL]
    by_hand = torch.stack([pose(p) for p in (ARMS_CROSSED, HAND_ON_HIP, SQUAT)])
    poses = PoseBatch(
        torch.cat([by_hand, clip.poses.rotations[moments]]),
        torch.cat([torch.zeros(3, 3), clip.poses.translation[moments]]),
    )
    azimuth = torch.tensor([0.3, -0.4, 0.7, 0.2, 0.2])
    body = Studio(config, ()).body
    rows = []
    for name in names:
        job = FitPerson(config, name)
        if not job.done:
            print(f"fitting {name}")
            job.run(lambda _: None)
        subject = load_subject(job.folder)
        renderer = make_renderer(config.renderer, {subject.name: subject})
        pictures = draw(subject.manifest, body, renderer, poses, azimuth, SIZE)
        rows.append(np.concatenate(list(pictures), 1))
    Image.fromarray(np.concatenate(rows)).save(out)
    print(out)


def pose(turns: dict[str, tuple[float, float, float]]) -> Tensor:  # [24, 3, 3]
    """Local rotations."""
    table = torch.zeros(24, 3)
    for joint, turn in turns.items():
        table[JOINT[joint]] = torch.tensor(turn)
    return from_axis_angle(table)


if __name__ == "__main__":
    main(sys.argv[1:])
