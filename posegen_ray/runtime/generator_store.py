"""Versions of the generator's weights: the trainer publishes one a round, streams wait for theirs.

A reader gets exactly the version it asks for, never "the newest": what it draws must not depend on
timing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import exceptions
from safetensors.numpy import load_file, save_file

from posegen_ray.errors import TrainingError
from posegen_ray.runtime.dispatch import raise_cause

if TYPE_CHECKING:  # the store itself holds arrays: its process does without torch
    from torch import Tensor

_Arrays = dict[str, NDArray[Any]]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Versions:
    """Object-store references by version, and files to start again from."""

    def __init__(self, folder: str, keep: int) -> None:
        self._folder, self._keep, self._changed = Path(folder), keep, asyncio.Condition()
        self._folder.mkdir(parents=True, exist_ok=True)
        files = self._folder.glob("generator_*.safetensors")
        self._kept = {int(file.stem.split("_")[1]): ray.put(load_file(file)) for file in files}

    async def publish(self, version: int, arrays: _Arrays) -> None:
        partial = self._file(version).with_suffix(".partial")
        save_file(arrays, partial)
        os.replace(partial, self._file(version))
        self._kept[version] = ray.put(arrays)
        later = {other for other in self._kept if other > version}  # of an attempt given up
        for gone in later.union(sorted(set(self._kept) - later)[: -self._keep]):
            del self._kept[gone]
            self._file(gone).unlink(missing_ok=True)
        async with self._changed:
            self._changed.notify_all()

    async def wait(self, version: int, seconds: float) -> list[Any]:
        end = time.monotonic() + seconds
        async with self._changed:  # held from look to wait: no publication falls in between
            while version not in self._kept:
                self._check(version, seconds, end)
                left = max(end - time.monotonic(), 0.01)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
        return [self._kept[version]]  # the reference: its reader fetches the arrays

    async def versions(self) -> list[int]:
        return sorted(self._kept)

    def _file(self, version: int) -> Path:
        return self._folder / f"generator_{version:06d}.safetensors"

    def _check(self, version: int, seconds: float, end: float) -> None:
        kept = sorted(self._kept)
        if kept and version < kept[0]:
            raise TrainingError(
                f"Generator version {version} is gone; the store keeps {kept}.",
                "Start the sample stream at the round in which training goes on.",
            )
        if time.monotonic() >= end:
            raise TrainingError(
                f"Generator version {version} was not published within {seconds:g} s; the store "
                f"has {kept or 'none'}.",
                "Raise runtime.stream.wait_s if a round takes longer; otherwise the trainer "
                "stopped: its own error tells why.",
            )


class GeneratorStore:
    """A picklable handle to one store.

    Args:
        folder: where versions are written too, so that the store survives its process.
        keep: how many of the newest versions stay readable.
        clear: forget what an earlier run left in the folder (a fresh start, not a resumed one).
        patience_s: longest time for an answer, a restart of its process included.
    """

    def __init__(
        self, folder: Path, keep: int = 4, clear: bool = False, patience_s: float = 120.0
    ) -> None:
        self._patience_s = patience_s
        if clear:  # here, not in the actor: its restarts must not forget
            for file in Path(folder).glob("generator_*.safetensors"):
                file.unlink()
        self._actor = _Versions.remote(str(Path(folder).absolute()), keep)

    def publish(self, version: int, state: Mapping[str, Tensor]) -> None:
        """Makes a version readable, in place of any of this number or later (after a resume)."""
        arrays = {name: _array(values) for name, values in state.items()}
        self._ask(self._actor.publish.remote(version, arrays), f"version {version} to be kept")

    def wait(self, version: int, seconds: float) -> dict[str, Tensor]:
        """The weights of exactly this version, as soon as they are there.

        Raises:
            TrainingError: not published in time, or no longer kept.
        """
        import torch

        what = f"version {version}"
        (reference,) = self._ask(self._actor.wait.remote(version, seconds), what, seconds)
        arrays = self._ask(reference, what)
        return {name: torch.tensor(values) for name, values in arrays.items()}

    def versions(self) -> list[int]:
        """The versions that can be read now."""
        return self._ask(self._actor.versions.remote(), "its list of versions")

    def _ask(self, reference: Any, what: str, seconds: float = 0.0) -> Any:
        """An answer, within the time that it takes by itself and the store's own patience."""
        limit = seconds + self._patience_s
        try:
            return ray.get(reference, timeout=limit)
        except exceptions.RayTaskError as error:
            raise_cause(error)
            raise
        except (exceptions.GetTimeoutError, exceptions.RayActorError) as error:
            raise TrainingError(
                f"The generator store did not answer within {limit:g} s ({what}).",
                "Its process was lost and could not start again, or its folder hangs: see whether "
                "the run folder's disk answers, then go on with resume=<run folder>.",
            ) from error


def _array(values: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(values.detach().cpu().numpy())
