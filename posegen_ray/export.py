"""Sets of labelled images: generated from a run, shard by shard, and looked at.

    out/manifest.json    counts, seeds, versions, licences, settings; written last
        .progress/       while the set is unfinished: its plan, and a file for each finished shard
        …                what the format writes (posegen_ray.datasets.formats, docs/datasets.md)

A shard depends on the plan and its own number alone: an interrupted command, given again, writes
the shards that are missing and ends with the same set. Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posegen_ray.body.camera import project, to_camera
from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import JOINT_NAMES, LIMB_JOINT_NAMES, LIMB_JOINTS
from posegen_ray.body.smpl import smpl_origin
from posegen_ray.config import RunConfig, settings_that_decide
from posegen_ray.datasets.formats import FORMATS, open_dataset
from posegen_ray.datasets.formats.base import MANIFEST, PROGRESS, Shard
from posegen_ray.datasets.formats.labels import About, Labels, concatenate_labels
from posegen_ray.drawing import Seeds
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.estimators.registry import crop_spec
from posegen_ray.evaluation.drawing import contact_sheet, draw_skeleton, hip_positions, to_picture
from posegen_ray.evaluation.summary import collect_versions
from posegen_ray.files import read_json, remove_partial, whole_file, write_json
from posegen_ray.records import Samples
from posegen_ray.run import Run
from posegen_ray.scene import mid_hip
from posegen_ray.seeding import numpy_stream
from posegen_ray.studio import Drawer, Patience, studio_of
from posegen_ray.subjects.store import read_manifest
from posegen_ray.training import Advance

VERSION = 1  # of the set's layout
CONVENTIONS = (
    "metres, radians, pixels; camera x right, y down, z forward; extrinsics world -> camera; world "
    "y up; pixel centres at +0.5; rotations parent <- joint, the root's world <- body"
)
_STREAM = "generate"  # name of the seeds; every shard has its own below it
_SIDE = 320  # pixels of a picture on a sheet


# --- labels -------------------------------------------------------------------------------------


@torch.no_grad()
def label_samples(
    samples: Samples,
    body: BodyModel,
    origin: Tensor,  # [3] of `body` in the coordinates of its published translations
    generators: Sequence[int],  # seed s was drawn by version generators[s mod their number]
) -> Labels:
    """All labels of samples: where they stand follows from their limb joints in 3D and 2D."""
    camera = samples.camera
    rotation, offset = camera.rotation.double(), camera.translation.double()
    hips = hip_positions(samples.joints, samples.joints_2d, camera)
    posed = body(samples.rotations, samples.shape).joints.double()
    in_world = (rotation.transpose(1, 2) @ (hips - offset)[..., None])[..., 0]
    translation = in_world - mid_hip(posed)
    joints = (posed + translation[:, None]).float()
    pixels = project(camera, joints)
    drift = (pixels[:, list(LIMB_JOINTS)] - samples.joints_2d).abs().max() if len(samples) else 0
    assert drift < 0.1, f"labels are {drift:.2f} pixels off"
    intrinsics = torch.eye(3).repeat(len(samples), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = camera.focal
    intrinsics[:, :2, 2] = camera.principal
    extrinsics = torch.eye(4).repeat(len(samples), 1, 1)
    extrinsics[:, :3, :3], extrinsics[:, :3, 3] = camera.rotation, camera.translation
    versions = torch.tensor(generators, dtype=torch.int32)
    return Labels(
        joints=to_camera(camera, joints).numpy(),
        joints_2d=pixels.numpy(),
        rotations=samples.rotations.numpy(),
        translation=(translation - origin).float().numpy(),
        shape=samples.shape.numpy(),
        intrinsics=intrinsics.numpy(),
        extrinsics=extrinsics.numpy(),
        view=samples.view.numpy(),
        subject=np.array(samples.subjects, dtype=np.str_),
        clip=np.array(samples.clips, dtype=np.str_),
        seed=samples.seeds.numpy(),
        generator=versions[samples.seeds % len(versions)].numpy(),
    )


# --- one shard ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriteShard:
    """Draws the images of one shard and writes them with their labels. A job: picklable."""

    folder: str
    format: str
    about: About
    shard: Shard
    drawer: Drawer
    states: Sequence[dict[str, Tensor]]  # of the generators
    generators: Sequence[int]  # their versions
    origin: Tensor  # [3] metres, see label_samples
    seed: int  # root of the set's seeds
    block_size: int  # images drawn at once

    @property
    def size(self) -> int:
        return self.shard.images

    def run(self, advance: Advance) -> None:
        """Writes the shard, then the file in .progress that says so."""
        body = studio_of(self.drawer.config, self.drawer.folders).body
        seeds = Seeds(self.seed, f"{_STREAM}/{self.shard.number}")
        images, labels, proposals = [], [], Counter[str]()
        missing, patience = self.shard.images, Patience("generated")
        while missing:
            block = seeds.take(min(missing, self.block_size))
            samples, counts = self.drawer.generated(self.states, block)
            patience.note(len(block), len(samples), counts)
            proposals.update(counts)
            images.append(samples.images.permute(0, 2, 3, 1).numpy())
            labels.append(label_samples(samples, body, self.origin, self.generators))
            missing -= len(samples)
            advance(len(samples))
        together = concatenate_labels(labels)
        folder = Path(self.folder)
        FORMATS[self.format].write_shard(
            folder, self.shard, np.concatenate(images), together, self.about
        )
        report = {
            "images": len(together),
            "subjects": Counter(together.subject.tolist()),
            "generators": Counter(map(str, together.generator.tolist())),
            "proposals": proposals,
        }
        write_json(_report_file(folder, self.shard), report)


def _report_file(folder: Path, shard: Shard) -> Path:
    return folder / PROGRESS / f"shard-{shard.name}.json"


def shards_of(images: int, images_per_shard: int) -> list[Shard]:
    """A set's division into shards: all of one size but the last."""
    return [
        Shard(number, first, min(images_per_shard, images - first))
        for number, first in enumerate(range(0, images, images_per_shard))
    ]


# --- a set --------------------------------------------------------------------------------------


def export_run(run: Run, out: Path) -> Path:
    """Writes config.n images of a run's later generators to `out`, or goes on writing them.

    Raises:
        DataError: `out` holds something else, or a finished set.
        ConfigError: `out` holds an unfinished set that was begun with other settings.
    """
    config = run.config
    _check_free(out)
    seed = config.experiment.seeds[0]
    trained = run.trained(seed).generators
    first = len(trained) // 2  # the later half of training: hard in more than one way
    states, generators = trained[first:], range(first + 1, len(trained) + 1)
    folders = run.drawing.subjects()
    body = config.body
    gender = body.gender if body.name == "smpl" else "neutral"
    about = About(body.name, gender, crop_spec(config.estimator).size, config.export.image)
    plan = _plan(config, about, states, generators, run.root(seed), dict(folders))
    _begin(out, plan)
    shards = shards_of(config.n, config.export.images_per_shard)
    missing = [shard for shard in shards if not _report_file(out, shard).exists()]
    if len(missing) < len(shards):
        run.console.say(f"going on: {len(shards) - len(missing)} of {len(shards)} shards are there")
    if missing:
        is_smpl = body.name == "smpl"
        origin = smpl_origin(body.smpl_folder, body.gender) if is_smpl else torch.zeros(3)
        drawer = run.drawing.drawer()
        jobs = [
            WriteShard(
                folder=str(out.absolute()),
                format=config.format,
                about=about,
                shard=shard,
                drawer=drawer,
                states=states,
                generators=generators,
                origin=origin,
                seed=run.root(seed),
                block_size=config.experiment.block_size,
            )
            for shard in missing
        ]
        with run.console.phase("generate", f"drawing {sum(s.images for s in missing)} images"):
            run.backend.run(jobs, "generating", "img")
    finish_set(out, config.format, shards, about, plan)
    return out


def finish_set(
    out: Path, format_name: str, shards: list[Shard], about: About, plan: dict[str, Any]
) -> None:
    """Makes a finished set of written shards: the format's last file, then the manifest."""
    FORMATS[format_name].finish(out, shards, about)
    reports = [read_json(_report_file(out, shard)) for shard in shards]
    counts: dict[str, Counter[str]] = {}
    for name in ("subjects", "generators", "proposals"):
        counts[name] = Counter()
        for report in reports:
            counts[name].update(report[name])
    manifest = {
        **plan,
        "images_by_subject": dict(sorted(counts["subjects"].items())),
        "images_by_generator": dict(sorted(counts["generators"].items())),
        "proposals": dict(sorted(counts["proposals"].items())),
        "shards": [shard.images for shard in shards],
    }
    remove_partial(out)
    write_json(out / MANIFEST, manifest)
    os.replace(out / PROGRESS, _finished_progress(out))  # at once; removing it takes a while
    shutil.rmtree(_finished_progress(out))


def _finished_progress(out: Path) -> Path:
    return out / f"{PROGRESS}.done"


def _check_free(out: Path) -> None:
    if (out / PROGRESS).is_dir():
        return
    shutil.rmtree(_finished_progress(out), ignore_errors=True)
    if out.exists() and any(out.iterdir()):
        finished = (out / MANIFEST).exists()
        raise DataError(
            f"{out} holds a finished set." if finished else f"{out} is not empty.",
            "Choose another folder with out=….",
        )


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Writes the plan of a new set, or checks that an unfinished one has the same."""
    file = out / PROGRESS / "plan.json"
    if not file.exists():
        write_json(file, plan)
        return
    before = read_json(file)
    changed = [name for name in plan if plan[name] != before.get(name)]
    if changed:
        name = changed[0]
        values = "" if name == "config" else f": {before.get(name)!r}, now {plan[name]!r}"
        raise ConfigError(
            f"{out} holds an unfinished set that was begun with another {name}{values}.",
            "Give the command as it was, or choose another folder with out=….",
        )


def _plan(
    config: RunConfig,
    about: About,
    states: Sequence[dict[str, Tensor]],
    generators: range,
    seed: int,
    folders: dict[str, str],
) -> dict[str, Any]:
    """What the set is made of: the same plan gives the same set."""
    settings = settings_that_decide(config)
    manifests = {name: read_manifest(Path(folder)) for name, folder in folders.items()}
    return {
        "version": VERSION,
        "format": config.format,
        "images": config.n,
        "images_per_shard": config.export.images_per_shard,
        "image": {"extension": about.extension, "height": about.size, "width": about.size},
        "conventions": CONVENTIONS,
        "joint_names": list(JOINT_NAMES),
        "limb_joint_names": list(LIMB_JOINT_NAMES),
        "body": {"name": about.body, "gender": about.gender, "is_smpl": about.is_smpl},
        "seed": {"root": seed, "stream": _STREAM},
        "generators": {"versions": list(generators), "sha256": [_digest(s) for s in states]},
        "subjects": {
            name: {"licence": manifest.licence, "source": manifest.source}
            for name, manifest in sorted(manifests.items())
        },
        "versions": collect_versions(),
        "config": settings,
    }


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- looking at a set ---------------------------------------------------------------------------


def picture_dataset(folder: Path, count: int, seed: int = 0, out: str = "") -> str:
    """Writes a contact sheet of `count` random images with their labels drawn; returns its path.

    Args:
        out: the PNG; "" for <name of the set>.png in the current folder.

    Raises:
        DataError: the folder holds no finished set.
    """
    dataset = open_dataset(folder)
    file = Path(out or f"{folder.resolve().name}.png")
    chosen = numpy_stream(seed, "show").permutation(len(dataset))[:count]
    pictures, captions = [], []
    for index in sorted(chosen.tolist()):
        example = dataset[index]
        picture = to_picture(torch.tensor(example.image).permute(2, 0, 1))
        scale = _SIDE / picture.width
        picture = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        joints = torch.from_numpy(example.joints_2d) * scale
        pictures.append(draw_skeleton(picture, joints))
        captions.append(f"{example.name} {example.caption}")
    sheet = contact_sheet(pictures, captions, columns=max(1, round(len(pictures) ** 0.5)))
    with whole_file(file) as stream:
        sheet.save(stream, "PNG")
    return str(file)
