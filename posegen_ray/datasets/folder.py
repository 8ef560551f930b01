"""Samples as a plain folder: PNG images and one table of labels, readable by anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from posegen_ray.body.skeleton import JOINT_NAMES, LIMB_JOINT_NAMES
from posegen_ray.errors import DataError
from posegen_ray.records import Samples


def write_folder(samples: Samples, folder: Path) -> Path:
    """Writes images/00000.png … and labels.npz, with manifest.json to explain them.

    labels.npz holds joints [N, 12, 3] (metres, crop-camera axes, mid-hip at 0), joints_2d
    [N, 12, 2] (pixels), rotations [N, 24, 3, 3], shape [N, S], camera_* of the crop, view [N, 3]
    (azimuth, elevation, roll; radians), subjects, clips and seeds, in the order of the images.

    Raises:
        DataError: the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty.", "Choose another folder with out=….")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    for index, image in enumerate(samples.images):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(partial / "images" / f"{index:05d}.png")
    camera = samples.camera
    np.savez_compressed(
        partial / "labels.npz",
        joints=samples.joints.numpy(),
        joints_2d=samples.joints_2d.numpy(),
        rotations=samples.rotations.numpy(),
        shape=samples.shape.numpy(),
        camera_rotation=camera.rotation.numpy(),
        camera_translation=camera.translation.numpy(),
        camera_focal=camera.focal.numpy(),
        camera_principal=camera.principal.numpy(),
        view=samples.view.numpy(),
        subjects=np.array(samples.subjects),
        clips=np.array(samples.clips),
        seeds=samples.seeds.numpy(),
    )
    manifest = {
        "images": len(samples),
        "size": [camera.height, camera.width],
        "joint_names": LIMB_JOINT_NAMES,
        "rotation_names": JOINT_NAMES,
        "conventions": "metres, radians; camera x right, y down, z forward; pixel centres at +0.5",
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return folder
