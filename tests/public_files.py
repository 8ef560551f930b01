"""Small SMPL models, and an estimator that answers what a test tells it, for public test sets.

Pictures of these tests are of one grey, ten times the number of the answer that they ask for; so a
picture that is paired with the wrong frame gets the wrong answer.
"""

from __future__ import annotations

from pathlib import Path

import av
import h5py
import numpy as np
import smplx
import torch
from PIL import Image
from smplx.utils import Struct
from torch import Tensor, nn

from posegen_ray.body.skeleton import H36M_JOINT_NAMES, NUM_JOINTS, PARENTS
from posegen_ray.estimators.base import Estimate, PoseEstimator
from posegen_ray.estimators.crop import CropSpec

VERTICES = 300
SIZES = {"neutral": 1.0, "female": 0.9, "male": 1.25}  # every model is the neutral one, scaled
GREY = 10


class StandIn(PoseEstimator):
    """Answers the row of `joints`, or of `rotations` and `shape`, that a picture's grey names."""

    name = "stand-in"
    crop = CropSpec(32, "upright")

    def __init__(
        self,
        joint_names: tuple[str, ...],
        joints: np.ndarray | None = None,
        rotations: np.ndarray | None = None,
        shape: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.joint_names = joint_names
        self.answers = tuple(
            None if rows is None else torch.from_numpy(rows).float()
            for rows in (joints, rotations, shape)
        )
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Estimate:
        middle = images[:, :, 16, 16].mean(1)
        rows = (middle * 255 / GREY).round().long()
        self.seen += rows.tolist()
        return Estimate(*(None if part is None else part[rows] for part in self.answers))


def _smpl(gender: str) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)

    def rows_that_sum_to_one(rows: int, columns: int) -> np.ndarray:
        table = stream.random((rows, columns)) ** 8
        return table / table.sum(1, keepdims=True)

    size = SIZES[gender]
    return {
        "v_template": size * (0.3 * stream.normal(size=(VERTICES, 3)) + [0.1, -0.2, 0.05]),
        "shapedirs": size * 0.03 * stream.normal(size=(VERTICES, 3, 10)),
        "posedirs": size * 0.01 * stream.normal(size=(VERTICES, 3, 207)),
        "J_regressor": rows_that_sum_to_one(NUM_JOINTS, VERTICES),
        "weights": rows_that_sum_to_one(VERTICES, NUM_JOINTS),
        "kintree_table": np.array([PARENTS, range(NUM_JOINTS)]) % 2**32,
        "f": stream.integers(0, VERTICES, (50, 3)),
    }


def h36m_regressor() -> np.ndarray:  # [17, VERTICES]
    """Single vertices: means of random ones would all lie in the middle."""
    table = np.zeros((17, VERTICES))
    table[np.arange(17), np.random.default_rng(1).choice(VERTICES, 17, False)] = 1
    return table


def write_smpl(folder: Path) -> None:
    """Models of all genders, and J_regressor_h36m.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    for gender in SIZES:
        np.savez(folder / f"SMPL_{gender.upper()}.npz", **_smpl(gender))
    np.save(folder / "J_regressor_h36m.npy", h36m_regressor())


def smplx_points(
    gender: str,
    rotations: np.ndarray,  # [N, 24, 3, 3]
    shape: np.ndarray,  # [N, 10]
) -> tuple[np.ndarray, np.ndarray]:  # vertices [N, VERTICES, 3], joints [N, 24, 3]
    """The smplx package's own posing."""
    model = smplx.SMPL("", data_struct=Struct(**_smpl(gender)), batch_size=len(shape))
    model.vertex_joint_selector.extra_joints_idxs.zero_()  # landmarks of the 6,890 vertices
    turns = torch.from_numpy(rotations).float()
    with torch.no_grad():
        out = model(
            betas=torch.from_numpy(shape).float(),
            global_orient=turns[:, :1],
            body_pose=turns[:, 1:],
            pose2rot=False,
        )
    return out.vertices.numpy(), out.joints[:, :NUM_JOINTS].numpy()


def write_grey(path: Path, number: int, width: int = 64, height: int = 48) -> None:
    """A picture that asks for answer `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (GREY * number,) * 3).save(path, quality=95)


def write_grey_video(path: Path, count: int, width: int = 64, height: int = 48) -> None:
    """Frame i asks for answer i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            pixels = np.full((height, width, 3), GREY * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


# MPI-INF-3DHP's 17 joints, by the names of the data set's own documentation
FILE_ORDER_3DHP = (
    "head_top", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder",
    "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee",
    "left_ankle", "pelvis", "spine", "jaw",
)  # fmt: skip


def write_3dhp(
    root: Path,
    joints: np.ndarray,  # [3, 17, 3] metres, FILE_ORDER_3DHP
) -> None:
    """Six sequences of three frames: 0 is measured, 1 is not valid, 2 has a joint outside."""
    for number in range(1, 7):
        folder = root / f"TS{number}"
        for frame in (0, 2):
            write_grey(folder / "imageSequence" / f"img_{frame + 1:06d}.jpg", frame)
        points = np.tile(np.linspace([5, 8], [45, 28], 17), (3, 1, 1))
        points[2, 4, 0] = 64.0  # the picture is 64 wide: its last pixel is 63
        with h5py.File(folder / "annot_data.mat", "w") as file:
            file["valid_frame"] = np.array([[1.0], [0.0], [1.0]])
            file["annot2"] = points[:, None]
            file["annot3"] = 1250 * joints[:, None] + [0, 0, 3000]
            file["univ_annot3"] = 1000 * joints[:, None] + [0, 0, 3000]


def in_h36m_order(joints: np.ndarray) -> np.ndarray:  # [N, 17, 3] from FILE_ORDER_3DHP
    return joints[:, [FILE_ORDER_3DHP.index(name) for name in H36M_JOINT_NAMES]]
