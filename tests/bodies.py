"""A small body made of capsules, for tests that need a body but no file."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from posegen_ray.body.camera import orbit
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT, JOINT_NAMES, NUM_JOINTS, PARENTS
from posegen_ray.config import RegionConfig, RendererConfig
from posegen_ray.records import PoseBatch, RenderRequest
from posegen_ray.subjects.body_field import body_field
from posegen_ray.subjects.build_lattice import build_lattice
from posegen_ray.subjects.capture import Capture, split_rgba
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import SubjectManifest, VoxelSubject

# T-pose joints of the person's left side and midline, metres; the right side is mirrored
_JOINTS = {
    "pelvis": (0.0, 0.95, 0.0),
    "left_hip": (0.09, 0.88, 0.0),
    "spine1": (0.0, 1.06, 0.0),
    "left_knee": (0.10, 0.49, 0.0),
    "spine2": (0.0, 1.18, 0.0),
    "left_ankle": (0.10, 0.09, -0.01),
    "spine3": (0.0, 1.27, 0.0),
    "left_foot": (0.10, 0.04, 0.11),
    "neck": (0.0, 1.45, 0.0),
    "left_collar": (0.06, 1.38, 0.0),
    "head": (0.0, 1.55, 0.01),
    "left_shoulder": (0.18, 1.38, 0.0),
    "left_elbow": (0.44, 1.38, 0.0),
    "left_wrist": (0.69, 1.38, 0.0),
    "left_hand": (0.77, 1.38, 0.0),
}
# capsules: (joint that moves it, from joint, to joint, radius)
_CAPSULES = (
    ("pelvis", "left_hip", "right_hip", 0.10),
    ("spine1", "pelvis", "spine2", 0.12),
    ("spine3", "spine2", "neck", 0.11),
    ("spine3", "left_collar", "right_collar", 0.09),
    ("head", "neck", "head", 0.06),
    ("head", "head", "head", 0.11),
    ("left_collar", "left_collar", "left_shoulder", 0.06),
    ("left_shoulder", "left_shoulder", "left_elbow", 0.05),
    ("left_elbow", "left_elbow", "left_wrist", 0.04),
    ("left_wrist", "left_wrist", "left_hand", 0.04),
    ("left_hip", "left_hip", "left_knee", 0.075),
    ("left_knee", "left_knee", "left_ankle", 0.055),
    ("left_ankle", "left_ankle", "left_foot", 0.045),
)
_VOXEL = 0.02
SMPL_VERTICES = 6890
KINTREE = np.array([PARENTS, range(NUM_JOINTS)]).astype(np.uint32)  # the root's parent: 4294967295


def _other(name: str) -> str:
    return name.replace("left_", "right_")


@functools.cache
def capsule_body() -> BodyModel:
    """A T-posed figure, 1.7 m tall: one closed surface, smooth weights, a shape space of 2.

    Shape 0 scales the whole body by 10 % per unit; shape 1 makes it thicker by 1 cm per unit.
    """
    points = dict(_JOINTS)
    for name, (x, y, z) in _JOINTS.items():
        points[_other(name)] = (-x if "left_" in name else x, y, z)
    joints = np.array([points[name] for name in JOINT_NAMES])
    capsules = list(_CAPSULES)
    capsules += [tuple(map(_other, c[:3])) + c[3:] for c in _CAPSULES if "left_" in c[0]]

    low, high = np.array([-0.9237, -0.1041, -0.2519]), np.array([0.92, 1.8, 0.3])
    axes = [np.arange(low[i], high[i], _VOXEL) for i in range(3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    distance = np.min([_capsule_distance(grid, joints, c) for c in capsules], axis=0)
    vertices, faces, _, _ = marching_cubes(distance, 0.0, spacing=(_VOXEL,) * 3)
    vertices = vertices + low
    corners = vertices[faces]
    volume = np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    if volume < 0:
        faces = faces[:, ::-1]

    nearness = np.zeros((len(vertices), len(JOINT_NAMES)))
    for capsule in capsules:
        gap = np.maximum(_capsule_distance(vertices, joints, capsule), 0.0)
        column = JOINT[capsule[0]]
        nearness[:, column] = np.maximum(nearness[:, column], np.exp(-gap / 0.015))
    weights = nearness / nearness.sum(1, keepdims=True)

    corners = vertices[faces]
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(
            normals,
            faces[:, corner],
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]),
        )
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return BodyModel(
        "capsules",
        torch.from_numpy(vertices.copy()),
        torch.from_numpy(np.stack([0.1 * vertices, 0.01 * normals], -1)),
        torch.from_numpy(joints),
        torch.from_numpy(np.stack([0.1 * joints, np.zeros_like(joints)], -1)),
        torch.from_numpy(weights),
        torch.from_numpy(faces.copy()),
    )


def _capsule_distance(
    points: np.ndarray,  # [..., 3]
    joints: np.ndarray,  # [24, 3]
    capsule: tuple[str, str, str, float],
) -> np.ndarray:  # [...] signed
    start, end = joints[JOINT[capsule[1]]], joints[JOINT[capsule[2]]]
    axis = end - start
    length = max(float(axis @ axis), 1e-12)
    along = np.clip(((points - start) @ axis) / length, 0.0, 1.0)
    return np.linalg.norm(points - start - along[..., None] * axis, axis=-1) - capsule[3]


def capsule_smpl() -> dict[str, np.ndarray]:
    """The capsule figure in SMPL's layout: joints from the vertices near them.

    Of as many vertices as SMPL has: some come twice, but in no face.
    """
    body = capsule_body()
    count = len(body.template)
    rows = np.r_[:count, : SMPL_VERTICES - count]
    vertices = body.template.double().numpy()
    joints = body.joint_template.double().numpy()
    regressor = np.zeros((NUM_JOINTS, len(vertices)))
    _, near = cKDTree(vertices).query(joints, k=60)
    for joint in range(NUM_JOINTS):
        places = np.vstack([vertices[near[joint]].T, np.ones(60)])
        regressor[joint, near[joint]] = np.linalg.lstsq(places, np.append(joints[joint], 1.0))[0]
    shapes = np.zeros((*vertices.shape, 10))
    shapes[..., :2] = body.shape_directions.numpy()
    return {
        "v_template": vertices[rows],
        "shapedirs": shapes[rows],
        "posedirs": np.zeros((SMPL_VERTICES, 3, 207), np.float32),
        "J_regressor": np.pad(regressor, ((0, 0), (0, SMPL_VERTICES - count))),
        "weights": body.skinning_weights.numpy()[rows],
        "kintree_table": KINTREE,
        "f": body.faces.numpy().astype(np.uint32),
    }


@functools.cache
def painted_subject(name: str = "capsules", hue: float = 0.0) -> VoxelSubject:
    """A subject on the capsule body."""
    return painted_on(capsule_body(), name, hue)


def painted_on(
    body: BodyModel, name: str, hue: float = 0.0, region: RegionConfig | None = None
) -> VoxelSubject:
    """A subject of a body's mean shape: colours painted in space instead of fitted to images."""
    shape = torch.zeros(body.num_shape)
    field = body_field(body, shape, region or RegionConfig(shell=0.03, voxel=0.015))
    place = field.positions()
    phase = torch.tensor([0.0, 2.1, 4.2]) + hue
    waves = torch.sin(6.0 * place[:, :1] + 9.0 * place[:, 1:2] + 15.0 * place[:, 2:] + phase)
    field.values[:, :3] = 0.5 + 0.4 * waves
    manifest = SubjectManifest(
        name=name,
        body=body.name,
        shape=tuple(shape.tolist()),
        psnr_full=float("nan"),
        psnr_person=float("nan"),
        ssim=float("nan"),
        lpips=float("nan"),
        held_out_frames=0,
        fit_steps=0,
        capture_sha256="",
        licence="CC0",
        source="painted for tests",
    )
    light = torch.zeros(2, 4, 4)
    light[0] = torch.diag(torch.tensor([0.0, 0.1, 0.0, 0.8]))
    light[0, 0, 3] = light[0, 3, 0] = 0.1
    return VoxelSubject(manifest, build_lattice(body, shape, field), field, light)


def shining(subject: VoxelSubject) -> VoxelSubject:
    """The same subject, which also mirrors a lamp: it looks different from every side."""
    lamp = torch.tensor([0.6, 0.0, 0.8])
    light = subject.light.clone()
    light[1, :3, :3] = 0.5 * lamp[:, None] * lamp
    light[1, :3, 3] = light[1, 3, :3] = 0.2 * lamp
    return replace(subject, light=light)


def capture_of(subject: VoxelSubject, frames: int, size: int, name: str = "painted") -> Capture:
    """Pictures of a painted capsule figure from all sides; every fourth is held out."""
    stream = torch.Generator().manual_seed(0)
    rotations = from_axis_angle(0.15 * torch.randn(frames, 24, 3, generator=stream))
    ones = torch.ones(frames)
    camera = orbit(
        torch.tensor([[0.0, 0.9, 0.0]]).expand(frames, 3),
        2.4 * torch.arange(frames),
        0.8 * torch.rand(frames, generator=stream) - 0.3,
        0.0 * ones,
        3.0 * ones,
        1.2 * size * ones,
        torch.full((frames, 2), size / 2),
        size,
        size,
    )
    bones = capsule_body()(rotations, torch.zeros(1, 2)).bones
    renderer = make_renderer(RendererConfig(), {"capsules": subject})
    rgba = renderer.render_arrays(RenderRequest(("capsules",) * frames, bones, camera))
    images, masks = split_rgba(torch.from_numpy(rgba))
    return Capture(
        name=name,
        body="capsules",
        shape=torch.zeros(2),
        images=images,
        masks=masks,
        poses=PoseBatch(rotations, torch.zeros(frames, 3)),
        camera=camera,
        held_out=torch.arange(frames) % 4 == 3,
        licence="CC0",
        source="painted capsules",
    )
