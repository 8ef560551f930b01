"""The demo's synthetic people: who they are, what they wear, and how they are filmed.

Everything is procedural and seeded by the person's name; no file is read. People of one split
never occur in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from posegen_ray.body.camera import orbit
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.errors import ConfigError
from posegen_ray.records import PoseBatch
from posegen_ray.seeding import derive_seed, torch_stream
from posegen_ray.subjects import garments as wear
from posegen_ray.subjects import hair
from posegen_ray.subjects.baking import TEXTURE_SIZE, assemble
from posegen_ray.subjects.capture import Capture, split_rgba
from posegen_ray.subjects.garments import Garment
from posegen_ray.subjects.paint import Cloth, Face, skin
from posegen_ray.subjects.raycast import TexturedMesh, raycast
from posegen_ray.subjects.tailoring import (
    Bools,
    Figure,
    Ints,
    Part,
    Region,
    measure,
)

SPLITS = ("train", "val", "test")


class Performer(Protocol):
    """Someone who can be filmed (`capture_person`): the wardrobe's people, MakeHuman's people."""

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def source(self) -> str:
        """What the film shows, in words."""
        ...

    def shape(self, body: BodyModel) -> Tensor:  # [S]
        """Shape coefficients on that body."""
        ...

    def dress(self, body: BodyModel, texture_size: int) -> TexturedMesh:
        """The person on that body: skin, hair and clothes."""
        ...


@dataclass(frozen=True)
class Person:
    """A synthetic person. Garments are listed from the skin outwards."""

    name: str
    split: str  # train | val | test
    phenotype: dict[str, float]  # keywords of AnnyBody.shape_from_phenotype
    face: Face
    hair: tuple[Garment, ...]
    garments: tuple[Garment, ...]
    licence: str = "CC0-1.0"
    source: str = "synthetic person, ray-cast"

    @property
    def seed(self) -> int:
        return derive_seed(0, "wardrobe", self.name)

    def shape(self, body: BodyModel) -> Tensor:  # [S]
        """See `shape_of`."""
        return shape_of(self, body)

    def dress(self, body: BodyModel, texture_size: int = TEXTURE_SIZE) -> TexturedMesh:
        """See `dress`."""
        return dress(self, body, texture_size)


def people(split: str) -> list[Person]:
    """The people of a split (train, val or test), in a fixed order."""
    if split not in SPLITS:
        raise ConfigError(f"There is no split {split!r}.", f"Choose one of {', '.join(SPLITS)}.")
    return [person for person in PEOPLE.values() if person.split == split]


def shape_of(person: Person, body: BodyModel) -> Tensor:  # [S]
    """Shape coefficients of a person; the mean shape on a body without phenotypes."""
    describe: Any = getattr(body, "shape_from_phenotype", None)
    if describe is None:
        return torch.zeros(body.num_shape)
    shape: Tensor = describe(**person.phenotype)
    return shape


def dress(person: Person, body: BodyModel, texture_size: int = TEXTURE_SIZE) -> TexturedMesh:
    """Builds the person on the body: skin, hair and clothes, each with its baked texture."""
    figure = measure(body, shape_of(person, body))
    parts: list[Part] = []
    hidden: list[Region] = []
    for index, garment in enumerate(person.garments + person.hair):
        wearing = garment(figure, derive_seed(person.seed, index))
        parts.extend(wearing.parts)
        if wearing.hides is not None:
            hidden.append(wearing.hides)
    return assemble([_flesh(figure, person, hidden), *parts], texture_size)


def _flesh(figure: Figure, person: Person, hidden: list[Region]) -> Part:
    """The body's skin where it can be seen: cloth that bends with it would let it through."""
    covered: Bools = torch.zeros(len(figure.vertices), dtype=torch.bool).numpy()
    for region in hidden:
        covered = covered | (region(figure.vertices) > 0.015)
    faces: Ints = figure.faces
    seen = ~covered[faces].all(1)
    return Part(
        figure.vertices,
        figure.weights,
        faces[seen],
        figure.uv,
        figure.uv_faces[seen],
        skin(figure, person.face, person.seed),
    )


def studio_poses() -> PoseBatch:  # 6 poses
    """Poses that hide as little as possible: T, A, arms up, a star, a lunge, a squat."""
    angles = torch.zeros(6, NUM_JOINTS, 3)

    def set_pair(pose: int, joint: str, x: float = 0, y: float = 0, z: float = 0) -> None:
        angles[pose, JOINT["left_" + joint]] = torch.tensor([x, y, z])
        angles[pose, JOINT["right_" + joint]] = torch.tensor([x, -y, -z])

    set_pair(1, "shoulder", z=-0.9)
    set_pair(2, "shoulder", z=1.1)
    set_pair(2, "hip", z=0.12)
    set_pair(3, "shoulder", z=0.5)
    set_pair(3, "hip", z=0.55)
    set_pair(4, "shoulder", y=-0.7, z=-0.3)
    set_pair(4, "elbow", y=-0.9)
    angles[4, JOINT["left_hip"], 0], angles[4, JOINT["left_knee"], 0] = -0.9, 0.9
    angles[4, JOINT["right_hip"], 0], angles[4, JOINT["right_knee"], 0] = 0.5, 0.4
    set_pair(5, "shoulder", y=-1.2)
    set_pair(5, "hip", x=-1.3, z=0.35)
    set_pair(5, "knee", x=1.6)
    return PoseBatch(from_axis_angle(angles), torch.zeros(6, 3))


def capture_person(
    person: Performer,
    body: BodyModel,
    poses: PoseBatch,
    views: int = 4,
    size: int = 256,
    seed: int = 0,
    hold_out: float = 0.15,
    texture_size: int = TEXTURE_SIZE,
) -> Capture:
    """Films a person from all around: the studio poses and the given ones.

    Args:
        poses: further poses, for example frames of motion clips; their order is shuffled.
        views: cameras a pose, spread evenly in azimuth, at random heights. Studio poses get twice
            as many.
        size: edge of the square pictures, pixels; the person fills most of it.
        hold_out: share of the given poses that are held out, with all their views.
    """
    stream = torch_stream(seed, "capture", person.name)
    studio = studio_poses()
    order = torch.randperm(len(poses), generator=stream)
    given = poses[order]
    held = torch.arange(len(poses)) < round(hold_out * len(poses))
    count = torch.cat([torch.full((6,), 2 * views), torch.full((len(poses),), views)])
    rotations = torch.cat([studio.rotations, given.rotations]).repeat_interleave(count, 0)
    translation = torch.cat([studio.translation, given.translation]).repeat_interleave(count, 0)
    held_out = torch.cat([torch.zeros(6, dtype=torch.bool), held]).repeat_interleave(count)

    shape = person.shape(body)
    posed = body(rotations, shape[None], translation)
    total = len(rotations)
    turn = torch.cat([torch.arange(int(n)) / n for n in count])
    start = torch.rand(len(count), generator=stream).repeat_interleave(count)
    azimuth = 2 * torch.pi * (turn + start)
    elevation = -0.45 + 1.25 * torch.rand(total, generator=stream)
    distance = 3.0 + torch.rand(total, generator=stream)
    middle = (posed.joints.amin(1) + posed.joints.amax(1)) / 2
    reach = (posed.joints - middle[:, None]).norm(dim=-1).amax(1) + 0.2  # with head and hands
    camera = orbit(
        middle,
        azimuth,
        elevation,
        torch.zeros(total),
        distance,
        0.47 * size * (distance**2 - reach**2).sqrt() / reach,
        torch.full((total, 2), size / 2),
        size,
        size,
    )
    images, masks = split_rgba(raycast(person.dress(body, texture_size), posed.bones, camera))
    return Capture(
        name=person.name,
        body=body.name,
        shape=shape,
        images=images,
        masks=masks,
        poses=PoseBatch(rotations, translation),
        camera=camera,
        held_out=held_out,
        licence=person.licence,
        source=person.source,
    )


_BLACK_HAIR = (0.10, 0.08, 0.07)
_BROWN_HAIR = (0.27, 0.16, 0.09)
_BLOND_HAIR = (0.72, 0.55, 0.32)
_RED_HAIR = (0.52, 0.22, 0.10)
_GREY_HAIR = (0.60, 0.59, 0.58)
_DENIM = Cloth((0.16, 0.24, 0.42), (0.62, 0.70, 0.82), "denim")
_BLACK_DENIM = Cloth((0.10, 0.10, 0.12), (0.40, 0.40, 0.44), "denim")
_CHINO = Cloth((0.62, 0.52, 0.38))
_NAVY = (0.10, 0.13, 0.27)
_WHITE = (0.92, 0.91, 0.88)

_LIST = (
    Person(
        "ada",
        "train",
        dict(gender=1.0, age=0.66, muscle=0.5, weight=0.45, height=0.5),
        Face((0.90, 0.71, 0.60), (0.72, 0.34, 0.33), _BROWN_HAIR, (0.25, 0.40, 0.30), make_up=0.6),
        (hair.long(_BROWN_HAIR, 0.22),),
        (
            wear.top(Cloth(_WHITE, _NAVY, "stripes", 0.05), sleeve=0.6, neck="wide", length=0.04),
            wear.skirt(Cloth((0.66, 0.15, 0.18)), length=0.48, flare=0.12, rise=0.02),
            wear.shoes((0.20, 0.12, 0.09), (0.10, 0.07, 0.06), (0.3, 0.2, 0.14), laces=False),
        ),
    ),
    Person(
        "ben",
        "train",
        dict(gender=0.0, age=0.68, muscle=0.6, weight=0.5, height=0.6),
        Face((0.80, 0.58, 0.44), (0.62, 0.36, 0.31), _BLACK_HAIR, stubble=0.6),
        (hair.short(_BLACK_HAIR, 0.022),),
        (
            wear.trousers(_DENIM),
            wear.top(
                Cloth((0.72, 0.16, 0.14), (0.12, 0.14, 0.2), "check", 0.07),
                sleeve=0.97,
                length=0.14,
                collar=True,
                neck="v",
                details=("placket", "chest_pocket"),
            ),
            wear.shoes((0.90, 0.90, 0.90), (0.95, 0.95, 0.95), (0.75, 0.15, 0.12)),
        ),
    ),
    Person(
        "chidi",
        "train",
        dict(gender=0.0, age=0.72, muscle=0.7, weight=0.55, height=0.75),
        Face((0.36, 0.23, 0.16), (0.40, 0.20, 0.18), (0.05, 0.04, 0.04), (0.12, 0.07, 0.04)),
        (hair.beard((0.07, 0.05, 0.05)),),
        (
            wear.trousers(Cloth((0.33, 0.34, 0.27), (0.24, 0.27, 0.16), "camouflage"), width=0.035),
            wear.top(
                Cloth((0.88, 0.62, 0.14), (0.14, 0.14, 0.16)),
                sleeve=0.98,
                length=0.14,
                thickness=0.02,
                ease=0.03,
                neck="high",
                hood=True,
                details=("cuffs",),
            ),
            wear.shoes((0.12, 0.12, 0.14), (0.92, 0.92, 0.90), (0.88, 0.62, 0.14)),
        ),
    ),
    Person(
        "devi",
        "train",
        dict(gender=1.0, age=0.75, muscle=0.45, weight=0.65, height=0.4),
        Face((0.66, 0.45, 0.32), (0.58, 0.24, 0.26), _BLACK_HAIR, make_up=0.8),
        (hair.bun(_BLACK_HAIR),),
        (
            wear.trousers(Cloth((0.16, 0.16, 0.20)), details=()),
            wear.top(
                Cloth((0.12, 0.48, 0.46), (0.94, 0.78, 0.35), "floral", 0.08),
                sleeve=0.75,
                length=0.34,
                neck="v",
                ease=0.03,
            ),
            wear.shoes((0.55, 0.28, 0.20), (0.3, 0.2, 0.15), (0.65, 0.36, 0.26), laces=False),
        ),
    ),
    Person(
        "erik",
        "train",
        dict(gender=0.0, age=0.85, muscle=0.45, weight=0.75, height=0.55),
        Face((0.92, 0.74, 0.66), (0.70, 0.44, 0.40), _GREY_HAIR, (0.30, 0.42, 0.55), 0.35, 0.8),
        (hair.short(_GREY_HAIR, 0.012, forehead=0.75), hair.glasses()),
        (
            wear.trousers(_CHINO, width=0.02),
            wear.top(Cloth((0.80, 0.86, 0.93)), sleeve=0.95, length=0.1, neck="v", collar=True),
            wear.top(
                Cloth((0.28, 0.31, 0.38), (0.5, 0.5, 0.55), "knit"),
                sleeve=0.93,
                length=0.32,
                neck="v",
                thickness=0.026,
                ease=0.03,
                opening=0.03,
            ),
            wear.shoes((0.28, 0.16, 0.10), (0.12, 0.08, 0.06), (0.33, 0.2, 0.13)),
        ),
    ),
    Person(
        "fay",
        "train",
        dict(gender=1.0, age=0.62, muscle=0.65, weight=0.4, height=0.6),
        Face((0.50, 0.33, 0.23), (0.48, 0.22, 0.22), (0.06, 0.04, 0.04), make_up=0.3),
        (hair.curls((0.10, 0.07, 0.06), 0.055),),
        (
            wear.trousers(
                Cloth((0.13, 0.15, 0.24), (0.93, 0.35, 0.45)),
                thickness=0.006,
                details=("side_stripe",),
            ),
            wear.top(
                Cloth((0.93, 0.40, 0.50), _WHITE, print_on="bars"),
                sleeve=0.05,
                length=0.06,
                neck="wide",
                ease=0.01,
            ),
            wear.shoes((0.30, 0.80, 0.72), (0.95, 0.95, 0.95), (0.95, 0.9, 0.2)),
        ),
    ),
    Person(
        "goran",
        "val",
        dict(gender=0.0, age=0.7, muscle=0.5, weight=0.4, height=0.65),
        Face((0.86, 0.66, 0.54), (0.66, 0.38, 0.34), _BROWN_HAIR, stubble=0.9),
        (hair.cap(Cloth((0.15, 0.30, 0.22), (0.15, 0.30, 0.22))), hair.short(_BROWN_HAIR, 0.008)),
        (
            wear.trousers(_CHINO, length=0.62, width=0.05, details=("trouser_pockets", "fly")),
            wear.top(Cloth((0.24, 0.36, 0.30), _WHITE, print_on="disc"), length=0.14, ease=0.025),
            wear.socks(_WHITE),
            wear.shoes((0.2, 0.2, 0.22), (0.9, 0.9, 0.9), (0.8, 0.8, 0.2)),
        ),
    ),
    Person(
        "hana",
        "val",
        dict(gender=1.0, age=0.68, muscle=0.45, weight=0.5, height=0.45),
        Face((0.93, 0.77, 0.64), (0.75, 0.38, 0.36), _BLACK_HAIR, make_up=0.5),
        (hair.ponytail(_BLACK_HAIR),),
        (
            wear.top(Cloth(_NAVY, _WHITE, "dots", 0.06), sleeve=0.25, length=0.02, neck="crew"),
            wear.skirt(Cloth(_NAVY, _WHITE, "dots", 0.06), 0.62, 0.16, rise=0.02),
            wear.shoes((0.85, 0.84, 0.80), (0.75, 0.7, 0.6), (0.85, 0.84, 0.80), laces=False),
        ),
    ),
    Person(
        "ivo",
        "test",
        dict(gender=0.0, age=0.64, muscle=0.6, weight=0.6, height=0.5),
        Face((0.72, 0.51, 0.38), (0.55, 0.32, 0.28), _BLACK_HAIR, stubble=0.4),
        (hair.curls(_BLACK_HAIR, 0.032),),
        (
            wear.trousers(_BLACK_DENIM),
            wear.top(
                Cloth((0.90, 0.88, 0.82), (0.1, 0.3, 0.55), print_on="star"), length=0.12, ease=0.02
            ),
            wear.top(
                Cloth((0.42, 0.22, 0.12)),
                sleeve=0.97,
                length=0.1,
                neck="high",
                thickness=0.026,
                ease=0.02,
                opening=0.055,
                collar=True,
                details=("cuffs",),
            ),
            wear.shoes((0.16, 0.10, 0.07), (0.06, 0.05, 0.05), (0.2, 0.13, 0.1), shaft=0.1),
        ),
    ),
    Person(
        "juno",
        "test",
        dict(gender=1.0, age=0.65, muscle=0.5, weight=0.5, height=0.65),
        Face((0.95, 0.79, 0.71), (0.78, 0.36, 0.36), _RED_HAIR, (0.28, 0.48, 0.38), make_up=0.7),
        (hair.long(_RED_HAIR, 0.3), hair.glasses((0.35, 0.16, 0.1))),
        (
            wear.trousers(_DENIM, width=0.07),
            wear.top(
                Cloth((0.30, 0.52, 0.36), (0.9, 0.85, 0.6), "knit"),
                sleeve=0.98,
                length=0.12,
                thickness=0.018,
                ease=0.025,
                neck="crew",
            ),
            wear.shoes((0.93, 0.93, 0.93), (0.95, 0.95, 0.95), (0.3, 0.6, 0.45)),
        ),
    ),
    Person(
        "kofi",
        "test",
        dict(gender=0.0, age=0.7, muscle=0.65, weight=0.5, height=0.7),
        Face((0.29, 0.18, 0.13), (0.36, 0.18, 0.17), (0.04, 0.03, 0.03), (0.1, 0.06, 0.04)),
        (hair.short((0.06, 0.05, 0.05), 0.009),),
        (
            wear.trousers(Cloth((0.55, 0.57, 0.60), _WHITE), width=0.03, details=("side_stripe",)),
            wear.top(
                Cloth((0.16, 0.32, 0.68), _WHITE, "blocks", 0.4), sleeve=0.4, length=0.14, ease=0.02
            ),
            wear.shoes((0.85, 0.25, 0.12), (0.95, 0.95, 0.95), _WHITE),
        ),
    ),
    Person(
        "lena",
        "test",
        dict(gender=1.0, age=0.88, muscle=0.4, weight=0.6, height=0.45),
        Face((0.90, 0.72, 0.63), (0.66, 0.36, 0.36), _GREY_HAIR, (0.32, 0.40, 0.50), 0.0, 0.7),
        (hair.bun((0.78, 0.76, 0.73)),),
        (
            wear.skirt(Cloth((0.33, 0.26, 0.40), (0.5, 0.42, 0.58), "check", 0.09), 0.7, 0.1),
            wear.top(
                Cloth((0.86, 0.80, 0.70), (0.6, 0.5, 0.4), "pinstripes", 0.03),
                sleeve=0.9,
                length=0.08,
                neck="v",
                collar=True,
                details=("buttons",),
            ),
            wear.shoes((0.12, 0.10, 0.10), (0.08, 0.07, 0.07), (0.2, 0.18, 0.18), laces=False),
        ),
    ),
)
PEOPLE: dict[str, Person] = {person.name: person for person in _LIST}
