"""The checkpoints of a training run, in a folder or behind any URL that fsspec opens.

A checkpoint is a folder `checkpoint_000007` with the loop's files and, written last, `whole.json`:
the metrics, and the sha256 of every file. So what was cut off or changed afterwards is recognised
on any file system; none has to rename folders in one step. Knows nothing of Ray or of models.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posegen_ray.errors import CheckpointError
from posegen_ray.files import sha256_of

_NAME = "checkpoint_{:06d}"
_PATTERN = "checkpoint_" + 6 * "[0-9]"
_WHOLE = "whole.json"
_CLAIM = "claim_{:06d}"
_CLAIMS = "claim_" + 6 * "[0-9]"
_SETTLE_S = 2.0  # in which what one machine writes behind a URL is seen by all
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from."""

    number: int
    folder: Path  # on this machine; may vanish when the store is gone or another is added
    metrics: dict[str, float]
    broken: tuple[str, ...]  # newer ones that cannot be used, each with the reason


class CheckpointStore:
    """Numbered checkpoints under one folder or URL; keeps the newest and the best.

    Args:
        url: a folder, or a URL (file://, s3://, gs://, memory://, ... as fsspec or pyarrow have
            them) that every machine of the run can reach.
        keep: how many of the newest stay.
        best_metric: the checkpoint in which this reported metric is smallest stays too; "": none.
    """

    def __init__(self, url: str, keep: int = 2, best_metric: str = "") -> None:
        self.url = url if "://" in url else str(Path(url).absolute())
        self.keep = keep
        self.best_metric = best_metric
        self._owner = ""

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("url", "keep", "best_metric", "_owner")}

    def claim(self) -> None:
        """From now on only this object, and its copies in other processes, may add checkpoints.

        The workers of a killed run live for some seconds, in which another may go on with it. Of
        several runs that claim at the same moment one gets the store: claims are numbered files, a
        folder lets one process alone create a file, and behind a URL what was written last is read
        back.

        Raises:
            CheckpointError: another run claims the store at this moment, or it cannot be written.
        """
        files, root = self._place
        token = uuid.uuid4().hex
        try:
            files.makedirs(root, exist_ok=True)
            earlier = self._claims()
            number = _number(earlier[-1]) + 1 if earlier else 0
            mine = f"{root}/{_CLAIM.format(number)}"
            if self._local:
                with open(mine, "xb") as file:
                    file.write(token.encode())
            else:
                files.pipe_file(mine, token.encode(), mode="create")
                time.sleep(_SETTLE_S)
                if files.cat_file(mine).decode() != token:
                    raise FileExistsError(mine)
            for claim in earlier:
                with contextlib.suppress(FileNotFoundError):
                    files.rm_file(claim)
        except FileExistsError as error:
            raise CheckpointError(
                f"Another run began at the same moment with the checkpoints at {self.url}.",
                "Let it, or give this one another run folder.",
            ) from error
        except OSError as error:
            raise _not_written(self.url, error) from error
        self._owner = token

    def _claims(self) -> list[str]:
        """The claims' files, oldest first."""
        files, root = self._place
        files.invalidate_cache()
        return sorted(files.glob(f"{root}/{_CLAIMS}"))

    def _is_mine(self) -> bool:
        files, _ = self._place
        try:
            newest: bytes = files.cat_file(self._claims()[-1])
        except (IndexError, FileNotFoundError):  # deleted by a newer one, or by hand
            return False
        return newest.decode() == self._owner

    def numbers(self) -> list[int]:
        """The checkpoints that are there, whole or not, oldest first."""
        files, root = self._place
        files.invalidate_cache()
        found = files.glob(f"{root}/{_PATTERN}") if files.exists(root) else []
        return sorted(_number(path) for path in found)

    def path(self, number: int) -> str:
        """Where a checkpoint lies, within its file system."""
        return f"{self._place[1]}/{_NAME.format(number)}"

    def metrics(self, number: int) -> dict[str, float] | None:
        """What was reported with a checkpoint; None where it was not finished."""
        manifest = self._manifest(number)
        return None if manifest is None else dict(manifest["metrics"])

    def add(self, number: int, folder: Path, metrics: Mapping[str, float]) -> None:
        """Keeps a copy of the folder's files, in place of any of this number or later; then
        forgets what is neither among the newest nor the best.

        Raises:
            CheckpointError: another run has claimed the store, or it cannot be written (disk full,
                no permission, no connection). What was there before is intact.
        """
        files, _ = self._place
        sources = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in sources}
        manifest = {
            "metrics": dict(metrics),
            "sha256": {name: sha256_of(path) for name, path in names.items()},
        }
        target = self.path(number)
        try:
            if self._owner and not self._is_mine():
                raise CheckpointError(
                    f"Another run goes on with the checkpoints at {self.url}.",
                    "Let it, or give this one another run folder.",
                )
            for later in self.numbers():
                if later >= number:  # of an attempt that was given up
                    files.rm(self.path(later), recursive=True)
            for name, path in names.items():
                files.makedirs(f"{target}/{name}".rsplit("/", 1)[0], exist_ok=True)
                files.put_file(str(path), f"{target}/{name}")
            with files.open(f"{target}/{_WHOLE}", "wb") as file:
                file.write(json.dumps(manifest).encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                files.rm(target, recursive=True)
            raise _not_written(target, error) from error
        self._forget()

    def newest(self) -> Found | None:
        """The newest whole checkpoint, fetched if it lies elsewhere; None where there is none yet.

        Raises:
            CheckpointError: there are some, and none is whole; names them.
        """
        broken: list[str] = []
        for number in reversed(self.numbers()):
            try:
                folder, metrics = self._fetch(number)
            except CheckpointError as error:
                broken.append(f"{_NAME.format(number)} {error.what}")
                continue
            return Found(number, folder, metrics, tuple(broken))
        if broken:
            raise CheckpointError(
                f"{self.url} holds no whole checkpoint: {'; '.join(broken)}.",
                "Delete them to train from the beginning, or bring one back from a backup.",
            )
        return None

    def _fetch(self, number: int) -> tuple[Path, dict[str, float]]:
        """A checkpoint's folder on this machine, checked. Raises CheckpointError (a clause)."""
        files, _ = self._place
        manifest = self._manifest(number)
        if manifest is None:
            raise CheckpointError("was not finished")
        place = Path(self.path(number))
        if not self._local:
            place = Path(self._fetched.name) / place.name
        for name, digest in manifest["sha256"].items():
            file = place / name
            try:
                if not self._local:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(f"{self.path(number)}/{name}", str(file))
                if sha256_of(file) != digest:
                    raise CheckpointError(f"is truncated or was changed ({name})")
            except OSError as error:
                raise CheckpointError(f"cannot be read ({error})") from error
        return place, dict(manifest["metrics"])

    def _manifest(self, number: int) -> dict[str, Any] | None:
        files, _ = self._place
        try:
            manifest = json.loads(files.cat_file(f"{self.path(number)}/{_WHOLE}"))
            return manifest if {"metrics", "sha256"} <= manifest.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _forget(self) -> None:
        files, _ = self._place
        numbers = self.numbers()
        known = {number: self.metrics(number) for number in numbers}
        whole = [number for number in numbers if known[number] is not None]
        stay = set(whole[-self.keep :])
        scores = {n: (known[n] or {}).get(self.best_metric, math.nan) for n in whole}
        finite = [n for n in whole if math.isfinite(scores[n])]
        if finite:
            stay.add(min(finite, key=lambda n: scores[n]))
        for number in set(numbers) - stay:
            files.rm(self.path(number), recursive=True)

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the folder within it."""
        from fsspec import url_to_fs

        try:
            files, root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            files, root = _by_pyarrow(self.url, error)
        return files, root.rstrip("/")

    @property
    def _local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._place[0], LocalFileSystem)

    @functools.cached_property
    def _fetched(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="posegen_")


def _number(path: object) -> int:
    """That of a checkpoint or claim."""
    return int(str(path).rstrip("/")[-6:])


def _not_written(place: str, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"Checkpoint {place} could not be written: {error}.",
        "Free space there (or see why it cannot be reached), then go on from the last one with "
        "resume=<run folder>.",
    )


def _by_pyarrow(url: str, reason: Exception) -> tuple[Any, str]:
    """pyarrow has S3 and Google's storage built in, fsspec needs a package for each."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    try:
        files, root = FileSystem.from_uri(url)
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"Checkpoints cannot be kept at {url!r}: {error}.",
            f"Use a folder or another URL, or install what its protocol needs ({reason}).",
        ) from error
    return ArrowFSWrapper(files), root
