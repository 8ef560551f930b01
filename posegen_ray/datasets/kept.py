"""Samples kept on disk as they are, quick to write and to read again; whole, or not there."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from posegen_ray.body.camera import Camera
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.records import Samples


@dataclass(frozen=True)
class KeptSamples:
    """Samples in a folder that every process can read. Picklable and small."""

    folder: str

    @classmethod
    def write(cls, samples: Samples, folder: Path) -> KeptSamples:
        """Keeps samples in `folder`, in place of what was there."""
        state = {field.name: getattr(samples, field.name) for field in fields(Samples)}
        save_checkpoint(folder, {**state, "camera": dict(vars(samples.camera))})
        return cls(str(folder.absolute()))

    def get(self) -> Samples:
        """The samples.

        Raises:
            CheckpointError: the folder is missing or damaged.
        """
        state = load_checkpoint(Path(self.folder))
        names = {name: tuple(state[name]) for name in ("subjects", "clips")}
        return Samples(**{**state, **names, "camera": Camera(**state["camera"])})
