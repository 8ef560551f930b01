"""Labelled samples whose truth is known, and sets written from them without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit, project, to_camera
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import LIMB_JOINTS
from posegen_ray.datasets.formats import FORMATS
from posegen_ray.datasets.formats.labels import About, Labels
from posegen_ray.estimators.crop import CropSpec, estimator_crop
from posegen_ray.export import finish_set, label_samples, shards_of
from posegen_ray.files import write_json
from posegen_ray.records import Samples
from posegen_ray.scene import mid_hip
from posegen_ray.seeding import torch_stream

SIZE = 64
GENERATORS = (3, 4)  # versions; even seeds are of the first


@dataclass(frozen=True)
class Truth:
    """What a sample was made from."""

    rotations: Tensor  # [N, 24, 3, 3]
    shape: Tensor  # [N, S]
    translation: Tensor  # [N, 3]
    in_world: Tensor  # [N, 24, 3]
    in_camera: Tensor  # [N, 24, 3]
    camera: Camera


def make_samples(body: BodyModel, seeds: Sequence[int]) -> tuple[Samples, Truth]:
    """Random poses in turned crops of rolled cameras; each depends on its own seed alone."""
    count = len(seeds)
    draws = [torch.randn(200, generator=torch_stream(seed, "set")) for seed in seeds]
    values = torch.stack(draws) if draws else torch.zeros(0, 200)
    angles, rest = values[:, :72].reshape(count, 24, 3), values[:, 72:]
    angles = torch.cat([angles[:, :1], 0.3 * angles[:, 1:]], 1)
    rotations = from_axis_angle(angles)
    shape, translation = rest[:, : body.num_shape], rest[:, 20:23]
    posed = body(rotations, shape, translation)
    frame = orbit(
        mid_hip(posed.joints),
        azimuth=rest[:, 30],
        elevation=rest[:, 31].clamp(-1, 1),
        roll=rest[:, 32],
        distance=4 + rest[:, 33].abs(),
        focal=torch.full((count,), 400.0),
        principal=torch.full((count, 2), 128.0),
        height=256,
        width=256,
    )
    crop = estimator_crop(frame, posed.joints, CropSpec(SIZE))
    limbs = posed.joints[:, list(LIMB_JOINTS)]
    pixels = [
        torch.randint(
            256, (3, SIZE, SIZE), dtype=torch.uint8, generator=torch_stream(seed, "picture")
        )
        for seed in seeds
    ]
    empty = torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8)
    samples = Samples(
        images=torch.stack(pixels) if pixels else empty,
        joints=to_camera(crop, limbs) - to_camera(crop, mid_hip(posed.joints)[:, None]),
        joints_2d=project(crop, limbs),
        rotations=rotations,
        shape=shape,
        camera=crop,
        view=rest[:, 30:33],
        subjects=tuple(("ann", "bob")[seed % 2] for seed in seeds),
        clips=("generated",) * count,
        seeds=torch.tensor(list(seeds), dtype=torch.int64),
    )
    in_camera = to_camera(crop, posed.joints)
    return samples, Truth(rotations, shape, translation, posed.joints, in_camera, crop)


def write_set(
    folder: Path,
    format_name: str,
    body: BodyModel,
    count: int = 7,
    images_per_shard: int = 3,
    extension: str = "png",
    origin: Tensor | None = None,
) -> tuple[Samples, Labels, Truth]:
    """A finished set of the samples with seeds 0, 1, …; without drawing them in a run."""
    samples, truth = make_samples(body, range(count))
    labels = label_samples(samples, body, torch.zeros(3) if origin is None else origin, GENERATORS)
    about = About(body.name, "neutral", SIZE, extension)
    shards = shards_of(count, images_per_shard)
    images = samples.images.permute(0, 2, 3, 1).numpy()
    for shard in shards:
        rows = slice(shard.first, shard.first + shard.images)
        part = Labels(**{name: value[rows] for name, value in labels.arrays().items()})
        FORMATS[format_name].write_shard(folder, shard, images[rows], part, about)
        report = {"subjects": {}, "generators": {}, "proposals": {}}
        write_json(folder / ".progress" / f"shard-{shard.name}.json", report)
    finish_set(folder, format_name, shards, about, {"format": format_name, "images": count})
    return samples, labels, truth


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def distance(a: object, b: object) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())
