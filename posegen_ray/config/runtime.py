"""Settings of processes: who runs where, with what, and for how long (conf/runtime)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from posegen_ray.config.rules import require


@dataclass
class RoleResources:
    """What one process of a role reserves; fractions share a CPU slot or a GPU."""

    num_cpus: float = 0.5
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            require(
                value >= 0 and (value <= 1 or value == int(value)),
                f"runtime: {name}={value} cannot be reserved.",
                "Use 0, a fraction below 1 (shared), or a whole number.",
            )


@dataclass
class RenderServerConfig:
    """The render servers and how their clients talk to them."""

    resources: RoleResources = field(default_factory=lambda: RoleResources(0.5, 0.0))
    replicas: int = 1  # servers that hold the same subjects
    max_replicas: int = 0  # more of them while calls queue, room for which is kept; 0: never more
    idle_s: float = 60.0  # in which a server beyond `replicas` is not needed, before it ends
    subjects_per_server: int = 1  # 2 or more save memory where there are more subjects than cores
    loaded_subjects: int = 0  # of them in memory at a time, least recently used out; 0: all
    max_batch: int = 8  # pictures a call; larger requests are split
    kept_calls: int = 4  # whose histories a server keeps for their gradients; 20 MB each
    max_in_flight: int = 2  # unanswered calls a client allows itself per server (back-pressure)
    deadline_s: float = 300.0  # longest silence of all servers before a request fails
    call_deadline_s: float = 120.0  # of one call, and longer than a start; a server beyond it hangs
    max_attempts: int = 4  # of one call, before a failing server makes the request fail
    start_timeout_s: float = 300.0  # loading a subject and compiling its kernels

    @property
    def most_replicas(self) -> int:
        """How many servers may hold the same subjects."""
        return max(self.replicas, self.max_replicas)

    def __post_init__(self) -> None:
        for name in (
            "replicas",
            "subjects_per_server",
            "max_batch",
            "kept_calls",
            "max_in_flight",
            "max_attempts",
        ):
            require(
                getattr(self, name) >= 1,
                f"runtime.render.{name}={getattr(self, name)} must be at least 1.",
                f"Set runtime.render.{name} to a positive number.",
            )
        for name in ("deadline_s", "call_deadline_s", "start_timeout_s", "idle_s"):
            require(
                getattr(self, name) > 0,
                f"runtime.render.{name}={getattr(self, name)} must be positive.",
                "Give it in seconds.",
            )
        require(
            self.loaded_subjects >= 0,
            f"runtime.render.loaded_subjects={self.loaded_subjects} must not be negative.",
            "Use 0 to keep all of a server's subjects loaded.",
        )
        require(
            self.max_replicas == 0 or self.max_replicas >= self.replicas,
            f"runtime.render.max_replicas={self.max_replicas} is less than "
            f"runtime.render.replicas={self.replicas}.",
            "Use 0 for a fixed number of servers, or a larger bound.",
        )
        require(
            self.max_replicas <= self.replicas or self.max_in_flight >= 2,
            "runtime.render.max_in_flight=1 lets no call wait at a server, so a lone client's load "
            "could never ask for more servers.",
            "Set runtime.render.max_in_flight to 2 or more, or max_replicas to 0.",
        )
        require(
            self.call_deadline_s < self.deadline_s,
            f"runtime.render.call_deadline_s={self.call_deadline_s:g} is not below "
            f"runtime.render.deadline_s={self.deadline_s:g}: a request would fail before a server "
            "that hangs is replaced.",
            "Lower the first or raise the second.",
        )


@dataclass
class StreamConfig:
    """The Ray Data stream of generated samples."""

    resources: RoleResources = field(default_factory=lambda: RoleResources(0.25, 0.0))
    actors: int = 1  # processes that draw samples, per train worker
    wait_s: float = 3600.0  # for a version of the generator to be published
    deadline_s: float = 3600.0  # longest wait for a batch, the start of the actors included

    def __post_init__(self) -> None:
        for name in ("actors", "wait_s", "deadline_s"):
            require(
                getattr(self, name) > 0,
                f"runtime.stream.{name}={getattr(self, name)} must be positive.",
                "Use at least one actor, and waiting times in seconds.",
            )


@dataclass
class RuntimeConfig:
    """Where everything runs (conf/runtime)."""

    name: str = "ray"  # ray | inprocess
    device: str = "cpu"  # inprocess: where everything computes (cpu, cuda, cuda:1)
    address: str = ""  # of a running cluster; empty: RAY_ADDRESS if set, else a private local one
    num_cpus: int = 6  # logical slots of a private cluster; more than cores is fine, work is shared
    num_gpus: int = 0  # GPUs of a private cluster
    scale_up_s: float = 0.0  # how long a cluster's autoscaler may take to start missing machines
    object_store_mb: int = 300
    dashboard: bool = False
    temp_folder: str = ""  # Ray's session folder; keep it short (unix socket paths)
    train_workers: int = 1
    # where not all find a place after a failure, so many are enough to go on; 0: all are needed
    min_train_workers: int = 0
    train_resources: RoleResources = field(default_factory=lambda: RoleResources(1.0, 0.0))
    job_workers: int = 2  # processes that fit, draw, fine-tune and predict, one job each at a time
    job_resources: RoleResources = field(default_factory=lambda: RoleResources(0.5, 0.0))
    job_silence_s: float = 7200.0  # longest time in which no job makes progress
    job_start_s: float = 300.0  # longest time in which a job worker's process cannot be reached
    max_train_failures: int = 3  # train worker deaths survived by resuming from the checkpoint
    train_start_s: float = 300.0  # for train workers to find their place and start
    threads: int = 1  # numeric threads in every process
    render: RenderServerConfig = field(default_factory=RenderServerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)

    @property
    def trainers(self) -> int:
        """How many train workers a training has: in one process, one."""
        return 1 if self.name == "inprocess" else self.train_workers

    @property
    def job_device(self) -> str:
        """Where jobs (fits, fine-tuning, tests) compute: in one process on `device`, else on their
        share of a GPU, if they have one."""
        if self.name == "inprocess":
            return self.device
        return "cuda" if self.job_resources.num_gpus else "cpu"

    def __post_init__(self) -> None:
        require(
            self.name in ("ray", "inprocess"),
            f"runtime.name={self.name!r} is not a runtime.",
            "Choose runtime=ray (servers and workers) or runtime=inprocess (one process).",
        )
        for name, least in (
            ("num_cpus", 1),
            ("num_gpus", 0),
            ("train_workers", 1),
            ("job_workers", 1),
            ("max_train_failures", 0),
            ("scale_up_s", 0),
            ("job_silence_s", 1),
            ("job_start_s", 1),
            ("train_start_s", 1),
            ("threads", 1),
        ):
            require(
                getattr(self, name) >= least,
                f"runtime.{name}={getattr(self, name)} is too small.",
                f"Set runtime.{name} to at least {least}.",
            )
        require(
            re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is not None,
            f"runtime.device={self.device!r} is not a device.",
            "Use cpu, cuda, or one of several GPUs: cuda:1.",
        )
        require(
            self.name == "inprocess" or self.device == "cpu",
            f"runtime.device={self.device!r} is for runtime=inprocess.",
            "On Ray each role has its share of GPUs: runtime.train_resources.num_gpus, "
            "runtime.render.resources.num_gpus.",
        )
        require(
            0 <= self.min_train_workers <= self.train_workers,
            f"runtime.min_train_workers={self.min_train_workers} is not between 0 and "
            f"runtime.train_workers={self.train_workers}.",
            "Use 0 to always train with all of them.",
        )
        require(
            self.object_store_mb >= 80,
            f"runtime.object_store_mb={self.object_store_mb} is below Ray's minimum.",
            "Set it to at least 80; 300 suits a laptop.",
        )
