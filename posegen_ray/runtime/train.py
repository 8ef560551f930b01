"""Runs a training loop in a Ray Train worker group: restarts, checkpoints and averaging.

Knows nothing about what is trained; the loop sees a `TrainContext` and cannot tell where it runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from posegen_ray.config import RuntimeConfig
from posegen_ray.context import TrainLoop
from posegen_ray.errors import CheckpointError, PosegenError, ResourceError, TrainingError

_REPORT_S = 600.0  # for the controller to keep a checkpoint
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # what Ray Train resumes from


@dataclass(frozen=True)
class FitResult:
    """What a finished training run leaves."""

    value: Any  # what worker 0's loop returned
    metrics: dict[str, float]  # last reported
    checkpoint: str  # last checkpoint's path, "" without one


class RayContext:
    """One Ray Train worker's `TrainContext`."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        place = ray.train.get_context()
        self.rank: int = place.get_world_rank()
        self.world_size: int = place.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def resume_folder(self) -> Path | None:
        import ray.train

        return local_folder(ray.train.get_checkpoint())

    def report(self, metrics: Mapping[str, float], checkpoint_folder: Path | None) -> None:
        import ray.train

        folder = checkpoint_folder
        saved = ray.train.Checkpoint.from_directory(str(folder)) if folder else None
        ray.train.report(dict(metrics), checkpoint=saved)
        # The controller learns of it later; a worker that dies before would lose the round.
        ray.train.get_all_reported_checkpoints(timeout_s=_REPORT_S)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        if self.world_size == 1:
            return
        every = list(parameters)
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        present = torch.tensor([p.grad is not None for p in every], device=pieces[0].device)
        flat = torch.cat([*(piece.reshape(-1) for piece in pieces), present.to(pieces[0].dtype)])
        distributed.all_reduce(flat)
        *means, counts = flat.split([piece.numel() for piece in pieces] + [len(every)])
        for parameter, mean, count in zip(every, means, counts, strict=True):
            if count > 0:
                parameter.grad = (mean / self.world_size).view_as(parameter)

    def average(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        if self.world_size > 1:
            distributed.all_reduce(total)
        return total / self.world_size

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)

    def gather(self, value: object) -> list[object]:
        values: list[object] = [None] * self.world_size
        if self.world_size == 1:
            return [value]
        distributed.all_gather_object(values, value)
        return values


def local_folder(checkpoint: Any) -> Path | None:
    """Where a checkpoint of Ray's (or None) can be read on this machine."""
    from pyarrow.fs import LocalFileSystem

    if checkpoint is None:
        return None
    local = isinstance(checkpoint.filesystem, LocalFileSystem)
    return Path(checkpoint.path if local else checkpoint.to_directory())


def fit_with_ray(
    loop: TrainLoop,
    config: RuntimeConfig,
    storage: str,
    name: str = "train",
    resume: bool = False,
    keep_checkpoints: int = 2,
) -> FitResult:
    """Trains in `config.train_workers` workers until the loop ends.

    A worker that dies (killed, out of memory, node lost) makes all start again from the last
    reported checkpoint, at most `config.max_train_failures` times.

    Args:
        loop: what each worker runs.
        config: the runtime section.
        storage: folder or URL (s3://, gs://, ...) that all nodes can reach.
        name: the run's folder there.
        resume: go on from the newest checkpoint of an earlier, unfinished run there.
        keep_checkpoints: how many of the newest stay.

    Raises:
        CheckpointError: `resume` is off and an earlier run is there.
        PosegenError: what the loop raised.
        ResourceError: the workers found no place within `config.train_start_s`.
        TrainingError: the workers failed too often.
    """
    import ray.train
    from ray import cloudpickle
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = storage if "://" in storage else str(Path(storage).absolute())
    if not resume and _has_run(storage, name):
        raise CheckpointError(
            f"{storage}/{name} already holds checkpoints of an earlier run.",
            "Continue it with resume=<run folder>, or choose or empty another run folder.",
        )
    share = config.train_resources
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{config.train_start_s:g}"
    trainer = TorchTrainer(
        _work,
        # as bytes: the controller, which only passes it on, need not import all that it uses
        train_loop_config={"loop": cloudpickle.dumps(loop), "threads": config.threads},
        torch_config=TorchConfig(backend="nccl" if share.num_gpus > 0 else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.train_workers,
            use_gpu=share.num_gpus > 0,
            resources_per_worker={"CPU": share.num_cpus, "GPU": share.num_gpus},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=config.max_train_failures,
                controller_failure_limit=config.max_train_failures,  # else it tries for ever
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=keep_checkpoints),
        ),
    )
    try:
        result = _beside_main_thread(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise _explained(error, config) from error
    if isinstance(result.return_value, _Refusal):
        raise result.return_value.error
    checkpoint = result.checkpoint.path if result.checkpoint else ""
    return FitResult(result.return_value, dict(result.metrics or {}), checkpoint)


def _beside_main_thread(work: Callable[[], Any]) -> Any:
    """Does the work in a thread of its own and waits for it.

    In the main thread Ray Train would take Ctrl-C for itself, for good: it would end the program as
    if all were well, and no later phase could be interrupted at all.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


@dataclass(frozen=True)
class _Refusal:
    """An error that a new attempt would only repeat, handed back as a value."""

    error: PosegenError


def _work(settings: dict[str, Any]) -> Any:
    from ray import cloudpickle

    torch.set_num_threads(settings["threads"])
    context = RayContext()
    try:
        return cloudpickle.loads(settings["loop"]).run(context)
    except PosegenError as error:
        if context.world_size == 1:  # with peers waiting, only a failure of the group frees them
            return _Refusal(error)
        raise


def _explained(error: Exception, config: RuntimeConfig) -> PosegenError:
    import ray

    failures = getattr(error, "worker_failures", {})
    cause = getattr(error, "controller_failure", None)
    if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
        share = config.train_resources
        free = ray.available_resources()
        return ResourceError(
            f"{config.train_workers} train workers of {share.num_cpus:g} logical CPUs and "
            f"{share.num_gpus:g} GPUs each did not start within {config.train_start_s:g} s, tried "
            f"{config.max_train_failures + 1} time(s); {free.get('CPU', 0):g} and "
            f"{free.get('GPU', 0):g} are free now.",
            "If a machine was lost, add one or lower runtime.train_workers; then go on with "
            "resume=<run folder>. Slow machines may need a larger runtime.train_start_s.",
        )
    for failure in failures.values():
        for cause in (failure, getattr(failure, "cause", None)):
            if isinstance(cause, PosegenError):
                return cause
    rank, first = next(iter(failures.items()), (0, error))
    lines = [line for line in str(first).splitlines() if line.strip()]
    return TrainingError(
        f"Train worker {rank} failed, after {config.max_train_failures} allowed restart(s): "
        f"{lines[-1].strip() if lines else type(first).__name__}",
        "Fix the cause, then continue from the last checkpoint with resume=<run folder>.",
    )


def _has_run(storage: str, name: str) -> bool:
    from pyarrow.fs import FileSystem, FileType

    filesystem, path = FileSystem.from_uri(storage)
    return bool(filesystem.get_file_info(f"{path}/{name}/{_SNAPSHOT}").type != FileType.NotFound)
