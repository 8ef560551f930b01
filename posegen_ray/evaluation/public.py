"""An estimator on a public test set, by the published protocol: one row a frame, then means.

Errors are between sets of joints that both sides have. An estimator that answers SMPL's rotations
and shape is measured on its mesh: neutral SMPL, joints made from the vertices by the same regressor
as the truth's. One that answers joints alone is measured on those that the protocol also has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import H36M_JOINT_NAMES, JOINT_NAMES
from posegen_ray.body.smpl_files import LICENCE, NUM_SHAPE, find_smpl_file
from posegen_ray.datasets.public import Frame, PublicSet, SmplPose
from posegen_ray.errors import AssetError, DataError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.evaluation import metrics
from posegen_ray.evaluation.pictures import Answered, answers

REGRESSOR_FILE = "J_regressor_h36m.npy"
_REGRESSOR_SOURCE = (
    "J_regressor_h36m.npy is in SPIN's data (fetch_data.sh of https://github.com/nkolot/SPIN); "
    "name it with dataset.joint_regressor=…."
)
_ROW_SUMS = 1e-3  # how far a regressor's row may be from a mean of vertices
# per frame; also the means' names, in the order of tables
METRICS = ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm", "pck150", "auc", "pa_pck150", "pa_auc")


@dataclass(frozen=True)
class PublicResult:
    """What an estimator reached on a test set."""

    joints: str  # which joints errors are over, in words
    frames: pd.DataFrame  # a row a frame: frame, sequence and METRICS (pve_mm: NaN without meshes)

    def means(self) -> dict[str, float]:
        """METRICS, mean over the frames."""
        return {name: float(self.frames[name].mean()) for name in METRICS}


class SmplMeshes:
    """SMPL poses -> vertices and joints, with the user's files.

    Args:
        smpl_folder: holds SMPL's models.
        joint_regressor: J_regressor_h36m.npy; empty: that file in `smpl_folder`.
        device: where meshes are made.
    """

    def __init__(
        self, smpl_folder: str, joint_regressor: str = "", device: torch.device | str = "cpu"
    ) -> None:
        self._folder = smpl_folder
        self._regressor_file = Path(joint_regressor or Path(smpl_folder) / REGRESSOR_FILE)
        self._device = device
        self._bodies: dict[str, BodyModel] = {}
        self._regressor: Tensor | None = None

    def require(self, genders: Iterable[str], joint_names: Sequence[str]) -> None:
        """Raises AssetError with the whole list when files are missing for these."""
        missing = [
            (f"SMPL_{gender.upper()}.pkl in body.smpl_folder={self._folder!r}", LICENCE)
            for gender in genders
            if not self._folder or find_smpl_file(self._folder, gender) is None
        ]
        if tuple(joint_names) != JOINT_NAMES and not self._regressor_file.is_file():
            missing.append((str(self._regressor_file), _REGRESSOR_SOURCE))
        if missing:
            sources = " ".join(dict.fromkeys(source for _, source in missing))
            raise AssetError(f"Missing: {', '.join(name for name, _ in missing)}.", sources)

    def __call__(
        self,
        rotations: Tensor,  # [B, 24, 3, 3] local; the root's in camera axes
        shape: Tensor,  # [B, 10]
        gender: str,
        joint_names: Sequence[str],  # JOINT_NAMES or H36M_JOINT_NAMES
    ) -> tuple[Tensor, Tensor]:  # joints [B, J, 3], vertices [B, V, 3]: metres, one origin
        """Poses the mesh; the joints are SMPL's own, or made from the vertices."""
        body = self._body(gender)
        posed = body(
            rotations.to(self._device, torch.float32),
            shape[:, :NUM_SHAPE].to(self._device, torch.float32),
            vertices=True,
        )
        assert posed.vertices is not None
        if tuple(joint_names) == JOINT_NAMES:
            return posed.joints, posed.vertices
        assert tuple(joint_names) == H36M_JOINT_NAMES
        return self._joint_regressor(body) @ posed.vertices, posed.vertices

    def _body(self, gender: str) -> BodyModel:
        if gender not in self._bodies:
            from posegen_ray.body.smpl import load_smpl_body

            self._bodies[gender] = load_smpl_body(self._folder, gender).to(self._device)
        return self._bodies[gender]

    def _joint_regressor(self, body: BodyModel) -> Tensor:  # [17, V]
        if self._regressor is None:
            file, vertices = self._regressor_file, len(body.template)
            try:
                table = np.load(file, allow_pickle=False)
                shape, sums = table.shape, table.sum(-1)
            except (OSError, ValueError, EOFError) as error:
                raise AssetError(f"{file} cannot be read ({error}).", _REGRESSOR_SOURCE) from error
            expected = (len(H36M_JOINT_NAMES), vertices)
            if shape != expected or not np.allclose(sums, 1, atol=_ROW_SUMS):
                raise AssetError(
                    f"{file} of shape {shape} is no joint regressor: it should be {expected}, "
                    "its rows summing to 1.",
                    _REGRESSOR_SOURCE,
                )
            self._regressor = torch.from_numpy(table).float().to(self._device)
        return self._regressor


def evaluate_public(
    estimator: PoseEstimator,
    test: PublicSet,
    meshes: SmplMeshes,
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda frames: None,
) -> PublicResult:
    """Measures an estimator on every frame of a test set.

    Args:
        meshes: needed where the truth or the answers are SMPL poses; required files are checked
            before the first picture that needs them is read.
        advance: called with so many frames more that are done.

    Raises:
        DataError: a picture cannot be read, the estimator answers NaN or too few of the joints, or
            the set has no frame.
        AssetError: SMPL's files or the joint regressor are missing.
    """
    if not len(test):
        raise DataError(f"{test.title} has no frame left.", f"Left out: {test.left_out}.")
    if not test.states_joints:
        meshes.require(test.genders, test.joint_names)
    rows: list[pd.DataFrame] = []
    joints = ""
    for batch in answers(estimator, test, batch_size, advance):
        joints, table = _measured(estimator, batch, test, meshes)
        rows.append(table)
    return PublicResult(joints, pd.concat(rows, ignore_index=True))


def weights_sha256(estimator: PoseEstimator) -> str:
    """Which weights a result is of: a hash of their names, shapes and values.

    Empty for a black box, whose weights are not known.
    """
    if not estimator.state_dict():
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(estimator.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _measured(
    estimator: PoseEstimator, batch: Answered[Frame], test: PublicSet, meshes: SmplMeshes
) -> tuple[str, pd.DataFrame]:  # the joints in words, and the frames' rows
    frames = batch.frames
    names, predicted, vertices = _answered(estimator, batch, test, meshes)
    truth, true_vertices = _truth(test, frames, meshes, vertices is not None)
    truth = truth[:, [test.joint_names.index(name) for name in names]]
    measured = [name for name in test.measured if name in names]
    root = test.root if test.root in names else metrics.MID_HIP
    if len(measured) < 3:
        raise DataError(
            f"{estimator.name} has {len(measured)} of the joints of {test.title}.",
            f"They are {', '.join(test.measured)}.",
        )
    rows = [names.index(name) for name in measured]
    predicted, truth = predicted.to("cpu", torch.float64), truth.to("cpu", torch.float64)
    errors = metrics.joint_errors(predicted, truth, names, root)[:, rows]
    aligned = metrics.aligned_errors(predicted[:, rows], truth[:, rows])
    surface = torch.full((len(frames),), torch.nan)
    if vertices is not None and true_vertices is not None:
        own = metrics.root_rows(names, root)
        surface = metrics.pve(
            vertices.cpu(),
            true_vertices.cpu(),
            predicted[:, own].mean(1),
            truth[:, own].mean(1),
        )
    table = {
        "frame": [frame.label for frame in frames],
        "sequence": [frame.sequence for frame in frames],
        "mpjpe_mm": errors.mean(1),
        "pa_mpjpe_mm": aligned.mean(1),
        "pve_mm": surface,
        "pck150": metrics.pck(errors),
        "auc": metrics.auc(errors),
        "pa_pck150": metrics.pck(aligned),
        "pa_auc": metrics.auc(aligned),
    }
    of = "" if len(measured) == len(test.measured) else f" of {len(test.measured)}"
    words = f"{len(measured)}{of}, {root} at 0"
    return words, pd.DataFrame(
        {name: v.numpy() if isinstance(v, Tensor) else v for name, v in table.items()}
    )


def _answered(
    estimator: PoseEstimator, batch: Answered[Frame], test: PublicSet, meshes: SmplMeshes
) -> tuple[tuple[str, ...], Tensor, Tensor | None]:  # joint names, [B, J, 3], [B, V, 3]
    """The estimate as those of the set's joints that it has, and as vertices."""
    estimate = batch.estimate
    if estimate.rotations is not None and estimate.shape is not None:
        meshes.require(("neutral", *test.genders), test.joint_names)
        batch.finite(estimator, estimate.rotations, estimate.shape)
        posed = meshes(estimate.rotations, estimate.shape, "neutral", test.joint_names)
        return test.joint_names, *posed
    if estimate.joints is None:
        raise DataError(
            f"{estimator.name} answers neither joints nor SMPL's rotations and shape.",
            "Name SMPL's files, so that it can answer joints.",
        )
    batch.finite(estimator, estimate.joints)
    names = tuple(name for name in test.joint_names if name in estimator.joint_names)
    rows = [estimator.joint_names.index(name) for name in names]
    return names, estimate.joints[:, rows], None


def _truth(
    test: PublicSet, frames: list[Frame], meshes: SmplMeshes, with_vertices: bool
) -> tuple[Tensor, Tensor | None]:  # [B, J, 3], [B, V, 3]
    """Where the set states the joints they are taken, else they come from the SMPL poses."""
    poses = [frame.smpl for frame in frames if frame.smpl is not None]
    if not test.states_joints:
        return _posed(test, poses, meshes)
    joints = torch.from_numpy(np.stack([f.joints for f in frames if f.joints is not None]))
    if not (poses and with_vertices):
        return joints, None
    made, vertices = _posed(test, poses, meshes)
    root = metrics.root_rows(test.joint_names, test.root)  # of stated joints and mesh alike
    shift = joints[:, root].mean(1) - made[:, root].mean(1).cpu()
    return joints, vertices.cpu() + shift[:, None]


def _posed(
    test: PublicSet, poses: list[SmplPose], meshes: SmplMeshes
) -> tuple[Tensor, Tensor]:  # [B, J, 3], [B, V, 3]
    """SMPL poses of several genders, each by its own model."""
    joints: list[Tensor] = [torch.empty(0)] * len(poses)
    vertices: list[Tensor] = [torch.empty(0)] * len(poses)
    for gender in sorted({pose.gender for pose in poses}):
        rows = [row for row, pose in enumerate(poses) if pose.gender == gender]
        made = meshes(
            torch.from_numpy(np.stack([poses[row].rotations for row in rows])),
            torch.from_numpy(np.stack([poses[row].shape for row in rows])),
            gender,
            test.joint_names,
        )
        for row, its_joints, its_vertices in zip(rows, *made, strict=True):
            joints[row], vertices[row] = its_joints, its_vertices
    return torch.stack(joints), torch.stack(vertices)
