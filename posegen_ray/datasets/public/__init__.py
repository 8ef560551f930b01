"""Public test sets: one module a set, each `(folder, settings) -> PublicSet`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from posegen_ray.config import KEYPOINTS, DatasetConfig
from posegen_ray.datasets.public.frames import (
    JOINT_SETS,
    Box,
    Frame,
    Picture,
    PublicSet,
    SmplPose,
)
from posegen_ray.datasets.public.human36m import Human36m
from posegen_ray.datasets.public.keypoints import KeypointSet, MarkedPerson
from posegen_ray.datasets.public.mpi_inf_3dhp import MpiInf3dhp
from posegen_ray.datasets.public.surreal import Surreal
from posegen_ray.datasets.public.threedpw import ThreeDPW
from posegen_ray.errors import ConfigError

# by the names of posegen_ray.config.PUBLIC_SETS
_READERS: dict[str, Callable[[Path, DatasetConfig], PublicSet]] = {
    "3dpw": ThreeDPW,
    "mpi_inf_3dhp": MpiInf3dhp,
    "h36m": Human36m,
    "surreal": Surreal,
}


def open_public_set(config: DatasetConfig, root: str | Path) -> PublicSet:
    """The test set that the settings name, in the user's folder `root`.

    Raises:
        ConfigError: no set or no folder is named, or one that is marked in 2D.
        DataError: the folder is incomplete (all that is missing is listed) or damaged.
        AssetError: a package that reads its files is not installed.
    """
    if not config.name or not str(root):
        raise ConfigError(
            "No test set, or no folder of one, is named.",
            f"Add dataset=<{' | '.join(_READERS)}> data_root=<folder>; see "
            "docs/public-test-sets.md.",
        )
    if config.name == KEYPOINTS:
        raise ConfigError(
            "dataset=keypoints has no truth in 3D.",
            "Measure it by itself: posegen evaluate dataset=keypoints dataset.labels=<file>.",
        )
    return _READERS[config.name](Path(root), config)


__all__ = [
    "Box",
    "Frame",
    "JOINT_SETS",
    "KeypointSet",
    "MarkedPerson",
    "Picture",
    "PublicSet",
    "SmplPose",
    "open_public_set",
]
