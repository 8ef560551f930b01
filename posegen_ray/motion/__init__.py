"""Motion capture: files -> clips in the common skeleton -> splits."""

from __future__ import annotations

from pathlib import Path

from posegen_ray.errors import DataError
from posegen_ray.motion.amass import read_amass
from posegen_ray.motion.bvh import read_bvh
from posegen_ray.motion.clips import FRAMES_PER_SECOND, Clip
from posegen_ray.motion.deepmimic import read_deepmimic

__all__ = ["Clip", "read_clip"]


def read_clip(path: str | Path, frames_per_second: float = FRAMES_PER_SECOND) -> Clip:
    """Reads a motion-capture file of any known kind, told apart by what is in it.

    Raises:
        DataError: no such file, unknown kind, or damaged; says which file and, where it is one
            frame's fault, which frame.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(256).lstrip()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from error
    if head.startswith(b"PK"):  # an npz is a zip file
        return read_amass(path, frames_per_second)
    if head.startswith(b"HIERARCHY"):
        return read_bvh(path, frames_per_second)
    if head.startswith(b"{"):
        return read_deepmimic(path, frames_per_second)
    raise DataError(
        f"{path} is not a motion-capture file of a known kind.",
        "Give an AMASS .npz, a .bvh, or a DeepMimic JSON file.",
    )
