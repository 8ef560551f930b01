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

from posegen_ray.checkpoint_store import CheckpointStore
from posegen_ray.config import RuntimeConfig
from posegen_ray.context import TrainLoop, go_on_from
from posegen_ray.errors import PosegenError, ResourceError, TrainingError


@dataclass(frozen=True)
class FitResult:
    """What a finished training run leaves."""

    value: Any  # what worker 0's loop returned
    metrics: dict[str, float]  # those of the last checkpoint
    restarts: int  # of the controller; the workers' are its own affair


class RayContext:
    """One Ray Train worker's `TrainContext`."""

    def __init__(self, store: CheckpointStore) -> None:
        import ray.train
        import ray.train.torch

        place = ray.train.get_context()
        self.rank: int = place.get_world_rank()
        self.world_size: int = place.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where nccl gathers objects
        self._store = store
        self._found = store.newest()  # all workers look before any of them reports
        self._next = self._found.number + 1 if self._found else 0

    def resume_folder(self) -> Path | None:
        return self._found.folder if self._found else None

    def report(self, metrics: Mapping[str, float], checkpoint_folder: Path | None) -> None:
        import ray.train

        if checkpoint_folder is not None:
            self._store.add(self._next, checkpoint_folder, metrics)
            self._next += 1
        # Ray's own checkpoints can be kept by count or by metric, not both, and are bound to Ray's
        # version. It is told the metrics, and its report waits for all workers, the writer too.
        ray.train.report(dict(metrics))

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


def fit_with_ray(
    loop: TrainLoop,
    config: RuntimeConfig,
    store: CheckpointStore,
    folder: Path,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> FitResult:
    """Trains in `config.train_workers` workers until the loop ends.

    A worker that dies (killed, out of memory, node lost) makes all start again from the newest
    checkpoint, at most `config.max_train_failures` times; so does Ray Train's controller. With
    `config.min_train_workers` they start again with fewer, where no more find a place.

    Args:
        loop: what each worker runs.
        config: the runtime section.
        store: checkpoints, where all nodes can reach them.
        folder: for Ray Train's own files; all nodes can reach it.
        resume: go on from the newest whole checkpoint in the store, whoever wrote it and with
            however many workers.
        say: told of broken checkpoints and of restarts.

    Raises:
        CheckpointError: `resume` is off and there are checkpoints, or none of them is whole.
        PosegenError: what the loop raised.
        ResourceError: the workers found no place within `config.train_start_s`.
        TrainingError: the workers failed too often.
    """
    import ray.train
    from ray import cloudpickle, exceptions
    from ray.train.torch import TorchConfig, TorchTrainer

    go_on_from(store, resume, say)
    share = config.train_resources
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{config.train_start_s:g}"
    workers: Any = config.train_workers
    if config.min_train_workers:
        workers = (config.min_train_workers, config.train_workers)
    trainer = TorchTrainer(
        _work,
        # as bytes: the controller, which only passes it on, need not import all that it uses
        train_loop_config={
            "loop": cloudpickle.dumps(loop),
            "store": cloudpickle.dumps(store),
            "threads": config.threads,
        },
        # nccl wants a GPU of its own for every worker
        torch_config=TorchConfig(backend="nccl" if share.num_gpus >= 1 else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=share.num_gpus > 0,
            resources_per_worker={"CPU": share.num_cpus, "GPU": share.num_gpus},
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.absolute()),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=config.max_train_failures,
                controller_failure_limit=config.max_train_failures,  # else it tries for ever
            ),
        ),
    )
    restarts = 0
    while True:
        try:
            result = _beside_main_thread(trainer.fit)
            break
        except ray.train.TrainingFailedError as error:
            raise _explained(error, config) from error
        except exceptions.RayActorError as error:
            if restarts == config.max_train_failures:
                raise TrainingError(
                    f"Ray Train's controller died, after {restarts} allowed restart(s): "
                    f"{str(error).strip().splitlines()[-1]}",
                    "See whether memory is short, then go on with resume=<run folder>.",
                ) from error
            restarts += 1
            say("  Ray Train's controller died; starting again from the last checkpoint")
    if isinstance(result.return_value, _Refusal):
        raise result.return_value.error
    there = store.numbers()
    metrics = store.metrics(there[-1]) if there else None
    return FitResult(result.return_value, metrics or {}, restarts)


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
    context = RayContext(cloudpickle.loads(settings["store"]))
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
