"""Which frames of which clips train, which choose, and which test. Decided by config alone.

A source clip's first half in time trains and its second half tests, with a gap between them and at
the end (many clips are loops: their last frame leads to the first). Validation and OOD clips are
used whole, and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from posegen_ray import assets
from posegen_ray.config import MotionConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.motion import read_clip
from posegen_ray.motion.clips import Clip
from posegen_ray.records import PoseBatch


@dataclass(frozen=True)
class MotionSplits:
    """Clips by purpose; no frame is in two of them."""

    source_train: tuple[Clip, ...]
    source_test: tuple[Clip, ...]
    validation: tuple[Clip, ...]
    ood: tuple[Clip, ...]


def load_splits(config: MotionConfig) -> MotionSplits:
    """Reads every clip that the configuration names; fetches the default clips if any is needed.

    Raises:
        ConfigError: a name is no clip, or two files have the same name.
        DataError: a file cannot be used, or a source clip is too short to be halved.
        AssetError: the default clips cannot be fetched.
    """
    own: dict[str, Path] = {}
    for path in map(Path, config.paths):
        name = path.stem.removeprefix("humanoid3d_")
        if name in own:
            raise ConfigError(f"{own[name]} and {path} have the same name.", "Rename one of them.")
        own[name] = path
    named = [*config.source, *config.validation, *config.ood]
    files = own
    if any(name not in own for name in named):
        files = {**_default_files(), **own}
    unknown = [name for name in named if name not in files]
    if unknown:
        raise ConfigError(
            f"There is no clip named {', '.join(map(repr, unknown))}.",
            f"Known: {', '.join(sorted(files))}; add your own files to motion.paths.",
        )
    unlisted = [name for name in own if name not in named]

    def clips(names: Iterable[str]) -> tuple[Clip, ...]:
        return tuple(_read(files[name], config.frames_per_second) for name in names)

    gap = round(config.gap_seconds * config.frames_per_second)
    halves = [_halves(clip, gap) for clip in clips([*config.source, *unlisted])]
    return MotionSplits(
        source_train=tuple(first for first, _ in halves),
        source_test=tuple(second for _, second in halves),
        validation=clips(config.validation),
        ood=clips(config.ood),
    )


def _read(path: Path, frames_per_second: float) -> Clip:
    """As `read_clip`; a file that has not changed is read once a process."""
    try:
        written = path.stat().st_mtime_ns
    except OSError:
        return read_clip(path, frames_per_second)  # which says what is wrong
    return _read_once(path, written, frames_per_second)


@functools.lru_cache(maxsize=128)
def _read_once(path: Path, written: int, frames_per_second: float) -> Clip:
    return read_clip(path, frames_per_second)


def gather(clips: Iterable[Clip]) -> tuple[PoseBatch, tuple[str, ...]]:  # B frames, B clip names
    """All frames of some clips as one batch, with the clip that each comes from."""
    clips = list(clips)
    poses = PoseBatch(
        torch.cat([clip.poses.rotations for clip in clips]),
        torch.cat([clip.poses.translation for clip in clips]),
    )
    return poses, tuple(clip.name for clip in clips for _ in range(len(clip)))


def _default_files() -> dict[str, Path]:
    folder = assets.fetch("mocap-deepmimic")
    return {
        path.stem.removeprefix("humanoid3d_"): path for path in folder.rglob("humanoid3d_*.txt")
    }


def _halves(clip: Clip, gap: int) -> tuple[Clip, Clip]:
    half = (len(clip) - 2 * gap) // 2
    if half < 1:
        raise DataError(
            f"Clip {clip.name!r} has only {len(clip)} frames: too short for two halves with gaps "
            f"of {gap}.",
            "Use it for validation or OOD, shorten motion.gap_seconds, or leave it out.",
        )
    return clip.part(0, half), clip.part(half + gap, len(clip) - gap)
