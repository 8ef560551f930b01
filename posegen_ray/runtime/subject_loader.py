"""Subjects on their way into render servers: read once, put once, loaded on any machine.

Loading a subject from the object store takes 1 ms more than from its folder, so it is done
everywhere: a server needs no folder, wherever it starts again.
"""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from posegen_ray.errors import ResourceError, SubjectError
from posegen_ray.subjects.store import MANIFEST, Subject, load_subject, read_manifest

if TYPE_CHECKING:
    from posegen_ray.config import RendererConfig
    from posegen_ray.runtime.render_server import ArrayRenderer

_FETCH_S = 120.0  # for a subject's files to come from another machine


@dataclass(frozen=True)
class StoredSubject:
    """A subject's files in the object store. Belongs to the process that put them there."""

    folder: str  # where they were, for messages
    files: bytes  # pickled reference to {file name: bytes as an array}

    def load(self) -> Subject:
        """The subject, checked against its hash.

        Raises:
            SubjectError: damaged, or of another format version.
            ResourceError: the files cannot be fetched.
        """
        try:
            files = ray.get(ray.cloudpickle.loads(self.files), timeout=_FETCH_S)
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"The files of the subject of {self.folder} could not be fetched: "
                f"{str(error).strip().splitlines()[-1]}",
                "The machine that started the servers was lost, or its network is slow; go on "
                "with resume=<run folder>.",
            ) from error
        with tempfile.TemporaryDirectory(prefix="posegen_") as scratch:
            for name, content in files.items():
                (Path(scratch) / name).write_bytes(content)
            try:
                return load_subject(scratch)
            except SubjectError as error:
                raise SubjectError(error.what.replace(scratch, self.folder), error.fix) from error


def put_subject(folder: Path) -> StoredSubject:
    """Puts a subject's files into the object store, once for each process that starts servers.

    There they stay until that process ends: a pickled reference, unlike an argument of an actor,
    is never counted as given up while servers may still have to start again.

    Raises:
        SubjectError: the subject is missing, or its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    paths = [folder / MANIFEST]
    described = json.loads(paths[0].read_text())
    paths.append(folder / described["file"])
    key = (ray.get_runtime_context().get_node_id(), str(folder), described["sha256"])
    if key not in _stored:
        files = _read(paths, manifest.name)
        _stored[key] = StoredSubject(str(folder), ray.cloudpickle.dumps(ray.put(files)))
    return _stored[key]


_stored: dict[tuple[str, str, str], StoredSubject] = {}


def _read(paths: list[Path], name: str) -> dict[str, NDArray[np.uint8]]:
    try:
        return {path.name: np.fromfile(path, np.uint8) for path in paths}
    except OSError as error:
        raise SubjectError(
            f"The subject {name!r} lacks its data file {paths[1]}.",
            "Fit it again, or restore the file.",
        ) from error


@dataclass(frozen=True)
class SubjectLoader:
    """Makes the renderer of one subject; picklable. See `SubjectCache`."""

    subjects: Mapping[str, StoredSubject]
    config: RendererConfig
    device: str = "cpu"
    threads: int = 1
    most_kept: int = 1  # calls whose histories are kept for their gradients
    kept: OrderedDict[bytes, Any] = field(default_factory=OrderedDict)  # all subjects' pictures

    def __call__(self, subject: str) -> ArrayRenderer:
        import torch

        from posegen_ray.runtime.wire import TensorRenderer
        from posegen_ray.subjects.render import make_renderer

        torch.set_num_threads(self.threads)
        loaded = {subject: self.subjects[subject].load()}
        renderer = make_renderer(self.config, loaded, self.device)
        return TensorRenderer(renderer, self.device, self.most_kept, self.kept)
