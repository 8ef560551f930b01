"""The people that test images show, dressed once a machine: their meshes are kept in the cache.

Dressing takes a core two seconds a person, and every process that draws test images needs the same
people. What is read from the cache is mapped: processes of one machine share its memory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from posegen_ray import subjects
from posegen_ray.assets import cache_folder
from posegen_ray.body.model import BodyModel
from posegen_ray.files import whole_file
from posegen_ray.subjects.baking import TEXTURE_SIZE
from posegen_ray.subjects.raycast import TexturedMesh
from posegen_ray.subjects.wardrobe import Performer

log = logging.getLogger(__name__)


@functools.cache
def code_of_making() -> str:
    """Changes with the code that dresses, films and fits people: then they are made anew."""
    folder = Path(subjects.__file__).parent
    return "".join(hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.py")))


def dressed(performer: Performer, body: BodyModel) -> TexturedMesh:
    """The performer on that body: read from the cache, or made and kept there."""
    file = _file(performer, body)
    mesh = _read(file)
    if mesh is None:
        mesh = performer.dress(body, TEXTURE_SIZE)
        _write(file, mesh)
    return mesh


def _file(performer: Performer, body: BodyModel) -> Path:
    digest = hashlib.sha256(f"{code_of_making()}{TEXTURE_SIZE}".encode())
    for name, values in body.state_dict().items():  # whatever file they came from
        digest.update(name.encode() + values.cpu().numpy().tobytes())
    name = f"{type(performer).__name__}-{performer.name}-{digest.hexdigest()[:12]}".lower()
    return cache_folder() / "dressed" / f"{name}.safetensors"


def _read(file: Path) -> TexturedMesh | None:
    """None, with a log line, where a damaged file must be made again."""
    try:
        return TexturedMesh(**safetensors.torch.load_file(file))
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, TypeError) as error:
        log.warning("%s cannot be read (%s): it is made again.", file, error)
        return None


def _write(file: Path, mesh: TexturedMesh) -> None:
    """Keeps a mesh instead of those that other code or another body made of the person."""
    tensors = {name: tensor.contiguous() for name, tensor in vars(mesh).items()}
    try:
        with whole_file(file) as stream:
            stream.write(safetensors.torch.save(tensors))
        person = file.name.rpartition("-")[0]
        for old in file.parent.glob(f"{person}-*.safetensors"):
            if old != file:
                old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be kept (%s): every process makes it anew.", file, error)
