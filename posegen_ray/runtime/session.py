"""Starts a private Ray cluster on this machine, or joins a running one; always closes it again."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from posegen_ray.config import RuntimeConfig
from posegen_ray.errors import ResourceError

# Read by Ray's own processes: quicker reaction to dead workers, and no noise about the dashboard's
# absence. A user's own values win.
_RAY_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # settings name files from where the command was given
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # a submitted job may set the same variables
    "RAY_memory_monitor_refresh_ms": "1000",
}
# The same for a private cluster. Pictures of a call come with its answer instead of through the
# object store, which costs 2 to 4 % of two busy cores; Ray's own bound is 100 kB. No workers are
# started in advance: they would lack our environment (`worker_environment`), so nothing could use
# them, but there would be one for each slot of num_cpus (80 MB, and 0.8 % of a core to do nothing).
_PRIVATE_RAY_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_max_direct_call_object_size": str(2 * 2**20),
}
_CONNECT_S = 5.0  # to a running cluster
# Handed on to every worker when set here.
_INHERITED = ("POSEGEN_CACHE", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


class RaySession:
    """`with RaySession(config) as session:` — a cluster that is closed however the block ends.

    A private cluster listens on the loopback interface only and asks for no token (unless
    RAY_AUTH_MODE says otherwise); a running one is joined through runtime.address or RAY_ADDRESS.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        self._config = config
        self._address = config.address or os.environ.get("RAY_ADDRESS", "")

    @property
    def private(self) -> bool:
        """Whether the cluster is this run's own."""
        return not self._address

    def __enter__(self) -> RaySession:
        for name, value in (
            _RAY_SETTINGS | (_PRIVATE_RAY_SETTINGS if self.private else {})
        ).items():
            os.environ.setdefault(name, value)
        if self.private:
            _listen_on_loopback()
        else:
            _check_reachable(self._address)
        import ray

        options: dict[str, Any] = {
            "runtime_env": {"env_vars": worker_environment(self._config)},
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "ignore_reinit_error": False,
        }
        try:
            if self._address:
                ray.init(address=self._address, **options)
            else:
                ray.init(address="local", **options, **self._private_options())
        except ConnectionError as error:
            raise _unreachable(self._address, error) from error
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        with _interrupts_ignored():  # a second Ctrl-C must not leave processes behind
            ray.shutdown()

    def _private_options(self) -> dict[str, Any]:
        config = self._config
        _check_gpus(config.num_gpus)
        options: dict[str, Any] = {
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "object_store_memory": config.object_store_mb * 2**20,
            "include_dashboard": config.dashboard,
            "dashboard_host": "127.0.0.1",
        }
        folder = config.temp_folder or str(Path(tempfile.gettempdir()) / f"posegen{os.getuid()}")
        if len(folder) > 40:
            raise ResourceError(
                f"Ray's session folder {folder!r} is too long for unix sockets.",
                "Set runtime.temp_folder to a short path such as /tmp/posegen.",
            )
        return {**options, "_temp_dir": folder}


def _listen_on_loopback() -> None:
    """Without this a private cluster would take commands from the whole network, unasked for.

    The variable has a narrower name than effect: off, every Ray process listens on 127.0.0.1 only.
    Ray reads it when it is imported, which may have happened, hence the constant too.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def _check_gpus(wanted: int) -> None:
    """Ray believes any number, and processes would fail one by one."""
    if wanted == 0:
        return
    import torch

    there = torch.cuda.device_count()
    if there < wanted:
        raise ResourceError(
            f"runtime.num_gpus={wanted}, but PyTorch can use {there} GPUs of this machine.",
            "Choose runtime=laptop (no GPU), runtime=one_gpu, or set runtime.num_gpus.",
        )


def _check_reachable(address: str) -> None:
    """Raises ResourceError unless a Ray head answers there (at once, or after some 40 s of silence;
    `ray.init` would try for a quarter of an hour)."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient
    from ray.exceptions import RayError

    client = address.startswith("ray://")
    try:
        target = address.removeprefix("ray://")
        if not client:
            target = canonicalize_bootstrap_address_or_die(address)
        host, _, port = target.rpartition(":")
        socket.create_connection((host, int(port)), _CONNECT_S).close()
        if not client:
            GcsClient(address=target)
    except (OSError, ValueError, RayError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ResourceError:
    reason = str(error).strip().split(". ")[0]  # Ray's advice is for those who call it directly
    return ResourceError(
        f"No Ray cluster answers at {address!r} ({reason}).",
        "Start one, or unset RAY_ADDRESS and runtime.address. Where it asks for a token, set "
        "RAY_AUTH_MODE=token (cluster/README.md).",
    )


def worker_environment(config: RuntimeConfig) -> dict[str, str]:
    """Environment variables that every worker process gets."""
    threads = str(config.threads)
    cache = Path(os.environ.get("POSEGEN_CACHE", "~/.cache/posegen_ray")).expanduser()
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",  # as in cli.py
        # threads with heaps of their own give freed memory back whatever `subjects.heap` says: a
        # quarter of a render server's time
        "MALLOC_ARENA_MAX": "1",
        "WARP_CACHE_PATH": os.environ.get("WARP_CACHE_PATH", str(cache / "warp")),
        **inherited,
    }


class _interrupts_ignored:
    def __enter__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)
