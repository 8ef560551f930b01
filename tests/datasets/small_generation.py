"""`export_run` on a small body, with random samples in place of a run's: to be interrupted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from bodies import capsule_body, painted_subject
from made_sets import make_samples

from posegen_ray import export
from posegen_ray.compose import compose_config
from posegen_ray.console import Console
from posegen_ray.local import LocalBackend
from posegen_ray.records import Samples
from posegen_ray.run import Run
from posegen_ray.subjects.store import save_subject


@dataclass(frozen=True)
class SlowDrawer:
    """In place of the studio's."""

    config: object
    folders: object
    seconds: float

    def generated(self, states: object, seeds: Sequence[int]) -> tuple[Samples, dict[str, int]]:
        """A sample for each seed but every fifth, whose proposals are not valid."""
        time.sleep(self.seconds)
        valid = [seed for seed in seeds if seed % 5]
        samples, _ = make_samples(capsule_body(), valid)
        return samples, {"drawn": len(seeds), "valid": len(valid)}


def generate(out: Path, format_name: str, images: int, seconds: float = 0.0) -> None:
    """Writes the set, or goes on writing it; each block of samples takes so many seconds."""
    settings = ["export.images_per_shard=4", "experiment.block_size=2", "experiment.seeds=[0]"]
    config = compose_config([f"format={format_name}", f"n={images}", *settings])
    subject = out.with_name("ann")
    if not subject.exists():
        save_subject(painted_subject(), subject)
    console = Console(quiet=True)
    run = SimpleNamespace(
        config=config,
        console=console,
        backend=LocalBackend(config, console),
        root=lambda seed: config.seed + seed,
        trained=lambda seed: SimpleNamespace(
            generators=[{"weight": torch.full((3,), float(n))} for n in range(4)]
        ),
        drawing=SimpleNamespace(
            subjects=lambda: (("ann", str(subject)),),
            drawer=lambda: SlowDrawer(config, (), seconds),
        ),
    )
    studio = export.studio_of
    spec = export.crop_spec
    export.studio_of = cast(Any, lambda *_: SimpleNamespace(body=capsule_body()))
    export.crop_spec = lambda estimator: replace(spec(estimator), size=64)
    try:
        export.export_run(cast(Run, run), out)
    finally:
        export.studio_of, export.crop_spec = studio, spec
