"""Parametric bodies on the common skeleton: rotations + shape -> joints, vertices, bones."""

from __future__ import annotations

from collections.abc import Callable

from posegen_ray.body.model import BodyModel
from posegen_ray.config import BodyConfig


def load_body(config: BodyConfig, progress: Callable[[str], None] | None = None) -> BodyModel:
    """The body that the configuration names.

    Args:
        progress: called with lines of text when the body must be built first (Anny, about 20 s).

    Raises:
        AssetError: SMPL's licensed file is missing, or the cache folder cannot be written.
    """
    if config.name == "smpl":
        from posegen_ray.body.smpl import load_smpl_body

        return load_smpl_body(config.smpl_folder, config.gender)
    from posegen_ray.body.anny import load_anny_body

    return load_anny_body(progress)
