"""Photographs among the source images: people marked in 2D, known in 3D, or fitted with SMPL.

They are of the kind that the estimator was trained on. What is not known of a person is NaN in the
sample, and the losses leave it out (estimators.supervision).

Marked hips are left out: they lie elsewhere than SMPL's (SPIN compares them with a regressor of
their own), while the other limb joints of LSP, MPII, COCO and Human3.6M are taken for SMPL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, LIMB_JOINTS, NUM_JOINTS
from posegen_ray.config import LossConfig, PhotographsConfig, RunConfig
from posegen_ray.datasets.files import read_image
from posegen_ray.datasets.image_labels import SPIN_JOINT_NAMES, ImageLabels, read_labels
from posegen_ray.datasets.public.frames import CROP, Box, missing_under, require_complete
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.estimators.base import centred
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.pictures import cut
from posegen_ray.estimators.registry import crop_spec
from posegen_ray.records import PHOTOGRAPH, Samples
from posegen_ray.seeding import derive_seed

_LIMBS = [SPIN_JOINT_NAMES.index(name) for name in LIMB_JOINT_NAMES]
_HIPS = [LIMB_JOINT_NAMES.index(name) for name in ("left_hip", "right_hip")]
_SOURCE = "The names are those in the file of labels; photographs.folders is where they start from."
_UNKNOWN = float("nan")


class Photographs:
    """The photographs that the configuration names, as samples.

    Args:
        crop: which part of a picture the estimator wants.
        gender: of the rendered people's SMPL body, which alone has joints for SMPL poses of that
            gender, and their shapes as labels; None: another body.

    Raises:
        ConfigError: the estimator wants turned crops.
        DataError: a file of labels is missing or damaged.
    """

    def __init__(self, config: PhotographsConfig, crop: CropSpec, gender: str | None) -> None:
        check_crop(crop)
        self._share = config.share
        self._crop = crop
        folders = config.folders * (len(config.labels) if len(config.folders) == 1 else 1)
        self._files = tuple(config.labels)
        self._sets = [
            (read_labels(Path(file)), Path(folder))
            for file, folder in zip(config.labels, folders, strict=True)
        ]
        self._known = [_known(labels, gender) for labels, _ in self._sets]
        self._people = [  # those of whom anything is known
            (number, row)
            for number, known in enumerate(self._known)
            for row in torch.stack(list(known.values())).any(0).nonzero()[:, 0].tolist()
        ]

    def __len__(self) -> int:
        """How many people there are of whom anything is known."""
        return len(self._people)

    def require(self, losses: LossConfig) -> None:
        """Whether all pictures are there, their boxes, and something that these losses compare.

        Raises:
            DataError: pictures are missing (all are listed), or a box is no box.
            ConfigError: no loss that is weighted compares what a file knows.
        """
        for (labels, _), known, file in zip(self._sets, self._known, self._files, strict=True):
            counts = {name: int(rows.sum()) for name, rows in known.items()}
            if not any(count and getattr(losses, name) for name, count in counts.items()):
                said = ", ".join(f"{name} of {count}" for name, count in counts.items())
                raise ConfigError(
                    f"No loss of fine-tuning compares what {file} knows of its people ({said}).",
                    "Weigh one: for people marked in 2D, finetune.losses.joints_2d=1.0.",
                )
            boxed = labels.centre.isfinite().all(1) & labels.side.isfinite() & (labels.side > 0)
            bad = torch.stack(list(known.values())).any(0) & ~boxed
            if bad.any():
                row = int(bad.nonzero()[0, 0])
                raise DataError(
                    f"{file}: person {row} ({labels.images[row]}) has no crop: centre "
                    f"{labels.centre[row].tolist()}, side {float(labels.side[row]):g} pixels.",
                    "Leave such people out of the file.",
                )
        sets = self._sets
        names = (str(sets[number][1] / sets[number][0].images[row]) for number, row in self._people)
        require_complete("photographs", missing_under(Path(), names), _SOURCE)

    def among(self, seeds: Sequence[int]) -> tuple[list[int], list[int]]:
        """The seeds whose source image is a photograph, and the others."""
        chosen = {seed for seed in seeds if derive_seed(seed, "photograph") < self._share * 2**63}
        return [s for s in seeds if s in chosen], [s for s in seeds if s not in chosen]

    def draw(self, seeds: Sequence[int], body: BodyModel) -> Samples:
        """A person for each seed, which alone says who it is.

        Args:
            body: the rendered people's.

        The camera of the crops is not known but for its picture's size; its axes are the world's.

        Raises:
            DataError: a picture is missing or damaged, or does not show its person.
        """
        count, size = len(seeds), self._crop.size
        images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
        joints = torch.full((count, len(_LIMBS), 3), _UNKNOWN)
        joints_2d = torch.full((count, len(_LIMBS), 2), _UNKNOWN)
        rotations = torch.full((count, NUM_JOINTS, 3, 3), _UNKNOWN)
        shape = torch.full((count, body.num_shape), _UNKNOWN)
        clips = []
        for i, seed in enumerate(seeds):
            number, row = self._people[derive_seed(seed, "person") % len(self)]
            labels, folder = self._sets[number]
            images[i], joints_2d[i] = self._crop_of(labels, folder, row)
            clips.append(f"{PHOTOGRAPH}{labels.images[row]}")
            known = {name: bool(rows[row]) for name, rows in self._known[number].items()}
            if known["rotations"]:
                rotations[i] = labels.rotations[row]
            if known["shape"]:
                shape[i] = labels.shape[row]
                joints[i] = _posed(body, rotations[i], shape[i])
            elif known["joints"]:
                joints[i] = _joints(labels.joints[row])
        unknown = torch.full((count,), _UNKNOWN)
        axes = torch.eye(3).repeat(count, 1, 1)
        middle = torch.full((count, 2), size / 2)
        return Samples(
            images=images,
            joints=joints,
            joints_2d=joints_2d,
            rotations=rotations,
            shape=shape,
            camera=Camera(axes, torch.zeros(count, 3), unknown, middle, size, size),
            view=unknown[:, None].repeat(1, 3),
            subjects=("photograph",) * count,
            clips=tuple(clips),
            seeds=torch.tensor(seeds, dtype=torch.int64),
        )

    def _crop_of(
        self, labels: ImageLabels, folder: Path, row: int
    ) -> tuple[Tensor, Tensor]:  # [3, S, S] uint8; [12, 2] pixels in it
        path = folder / labels.images[row]
        label = f"person {row}"
        (x, y), half = labels.centre[row].tolist(), float(labels.side[row]) / 2
        box = Box(x - half, y - half, x + half, y + half)
        image, cutting = cut(read_image(path, label), box, CROP, self._crop, f"{path} ({label})")
        points = labels.keypoints[row, _LIMBS]
        places = cutting.in_crop(points[:, :2])
        places[points[:, 2] <= 0] = _UNKNOWN
        places[_HIPS] = _UNKNOWN
        return image, places


def check_crop(crop: CropSpec) -> None:
    """Raises ConfigError unless photographs can be cut as this estimator wants."""
    if crop.kind != "box":
        raise ConfigError(
            f"The estimator wants {crop.kind} crops, which the boxes of photographs do not give.",
            "Use estimator=spin, hybrik_res34, hybrik_w48 or compact_hmr, or one of your own whose "
            "crop.kind is box; or leave photographs.labels empty.",
        )


def photographs_of(config: RunConfig) -> Photographs | None:
    """Those that a run's settings name.

    Raises:
        ConfigError, DataError: as `Photographs`.
    """
    settings = config.photographs
    if not settings.labels:
        return None
    gender = config.body.gender if config.body.name == "smpl" else None
    return Photographs(settings, crop_spec(config.estimator), gender)


def check_photographs(config: RunConfig, losses: LossConfig) -> None:
    """Whether a run has the photographs that its settings name, if they name any.

    Raises:
        ConfigError, DataError: as `Photographs` and its `require`.
    """
    photographs = photographs_of(config)
    if photographs is not None:
        photographs.require(losses)


def _known(
    labels: ImageLabels, gender: str | None
) -> dict[str, Tensor]:  # [N] bool, by LossConfig's names
    """Of whom which loss knows something to compare."""
    others = [joint for i, joint in enumerate(_LIMBS) if i not in _HIPS]
    in_space = labels.joints[..., 3] > 0
    in_space = in_space[:, [_LIMBS[i] for i in _HIPS]].all(1) & in_space[:, others].any(1)
    shaped = labels.has_smpl & torch.tensor([one == gender for one in labels.genders])
    return {
        "joints": in_space | shaped,
        "joints_2d": (labels.keypoints[:, others, 2] > 0).any(1),
        "rotations": labels.has_smpl,
        "shape": shaped,
    }


@torch.no_grad()
def _posed(body: BodyModel, rotations: Tensor, shape: Tensor) -> Tensor:  # [12, 3] metres
    return centred(body(rotations[None], shape[None]).joints[0, list(LIMB_JOINTS)])


def _joints(
    marked: Tensor,  # [24, 4] SPIN_JOINT_NAMES
) -> Tensor:  # [12, 3] metres, the middle of the marked hips at 0
    limbs = marked[_LIMBS]
    joints = centred(limbs[:, :3])
    joints[limbs[:, 3] <= 0] = _UNKNOWN
    joints[_HIPS] = _UNKNOWN
    return joints
