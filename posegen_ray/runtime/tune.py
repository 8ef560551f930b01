"""Sweeps on Ray Tune: a trial is one placement group with its training and its render servers.

A placement group is granted whole or not at all, so trials never hold what another one waits for.
The training loop runs in the trial's own process; the render servers that it starts are captured
by its group, and end with it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from posegen_ray.config import ParameterConfig, RunConfig, TuneConfig
from posegen_ray.console import Console
from posegen_ray.context import GroupOfOne
from posegen_ray.runtime.backend import RayBackend
from posegen_ray.runtime.capacity import free_nodes
from posegen_ray.runtime.placement import Plan
from posegen_ray.runtime.render_pool import start_pool
from posegen_ray.runtime.trial_placement import TrialPlan, plan_trials
from posegen_ray.seeding import derive_seed
from posegen_ray.studio import Folders
from posegen_ray.tuning import OBJECTIVE, ROUND, SEED, Outcome, Point, Search, TrialWork

_FAILURE = "failure"  # a result's field: why the trial cannot go on
# Read by Tune when a search begins. A user's own values win.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # result.json is all that is read
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TuneBackend(RayBackend):
    """A Ray backend that also runs trials. Prepares as any run does, then makes room for them."""

    def __enter__(self) -> TuneBackend:
        super().__enter__()
        return self

    def _plan(self) -> Plan:
        preparing = self._find_places(training=False)
        limit = self._config.tune.at_once or self._config.n_trials
        self._trials = plan_trials(self._config.runtime, free_nodes(), self._subjects(), limit)
        self._console.say(f"{preparing.table()}\n{self._trials.table()}")
        return preparing

    def tune(self, work: TrialWork, folders: Folders, search: Search) -> list[Outcome]:
        self.release_renderer()
        self._end_job_workers()  # preparation is over, and their share is the trials' now
        trial = ServedTrial(work, folders, self._config)
        return run_search(trial, search, self._trials, self._config, self._folder, self._console)


class RunnableTrial(Protocol):
    """What happens in a trial's process. Picklable."""

    def run(self, name: str, point: Point, context: TrialContext) -> str:
        """Trains; the answer is why it could not be done, or nothing."""


@dataclass(frozen=True)
class ServedTrial:
    """A trial's work with render servers of its own."""

    work: TrialWork
    folders: Folders
    config: RunConfig

    def run(self, name: str, point: Point, context: TrialContext) -> str:
        runtime = self.config.runtime
        torch.set_num_threads(runtime.threads)
        paths = {name: Path(folder) for name, folder in self.folders}
        servers = replace(runtime.render, max_replicas=0)  # no more than its group has room for
        pool = start_pool(servers, paths, self.config.renderer, threads=runtime.threads)
        try:
            return self.work.run(name, point, pool, context)
        finally:
            pool.close()


class TrialContext(GroupOfOne):
    """A trial's `TrainContext`: each round is a result of Tune's, with its checkpoint."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def resume_folder(self) -> Path | None:
        from pyarrow.fs import LocalFileSystem

        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            return None
        local = isinstance(checkpoint.filesystem, LocalFileSystem)
        return Path(checkpoint.path if local else checkpoint.to_directory())

    def report(self, metrics: Mapping[str, float], checkpoint_folder: Path | None) -> None:
        folder = checkpoint_folder
        saved = tune.Checkpoint.from_directory(str(folder)) if folder else None
        tune.report(dict(metrics), checkpoint=saved)


def run_search(
    trial: RunnableTrial,
    search: Search,
    share: TrialPlan,
    config: RunConfig,
    folder: Path,
    console: Console,
) -> list[Outcome]:
    """Runs a search's trials, or those that an interruption left; outcomes in their order.

    Its state is kept in `folder`/`search.name`. A trial that dies (killed, out of memory, node
    lost) goes on from its last round, at most `config.runtime.max_train_failures` times.

    Raises:
        KeyboardInterrupt: interrupted; the next call goes on.
    """
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    device = "cuda" if share.trial.shares[0].resources.num_gpus > 0 else "cpu"
    trainable = tune.with_resources(
        tune.with_parameters(_train, trial=trial, device=device),
        tune.PlacementGroupFactory(share.bundles(), strategy="PACK"),
    )
    home = (folder / search.name).absolute()
    rounds = config.training.rounds
    first = 1 if search.tune.search == "optuna" else 0  # the number that Tune gives the first trial
    progress = _Progress(console, search.n_trials, rounds, first)
    if tune.Tuner.can_restore(str(home)):
        console.say(f"going on with {home.name}")
        tuner = tune.Tuner.restore(str(home), trainable, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=_param_space(search),
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode="min",
                num_samples=search.n_trials,
                search_alg=_searcher(search, config.seed, share.at_once),
                scheduler=_scheduler(search, rounds),
                trial_dirname_creator=_trial_folder,
            ),
            run_config=tune.RunConfig(
                name=home.name,
                storage_path=str(home.parent),
                verbose=0,
                callbacks=[JsonLoggerCallback(), progress],
                failure_config=tune.FailureConfig(config.runtime.max_train_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            ),
        )
    before = signal.getsignal(signal.SIGINT)
    try:
        results = tuner.fit()
        # Tune's own handler ends a search in good order, and takes itself away when it is used
        interrupted = signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
    every = [results[number] for number in range(len(results))]
    return sorted(map(_outcome, every), key=lambda outcome: outcome.name)  # restored ones are mixed


def _train(point: dict[str, Any], trial: RunnableTrial, device: str) -> None:
    name = Path(tune.get_context().get_trial_dir()).name
    failure = trial.run(name, point, TrialContext(device))
    if failure:
        tune.report({OBJECTIVE: math.inf, _FAILURE: failure})


def _trial_folder(trial: Any) -> str:
    """Named by the order in which trials were made."""
    return f"trial_{_number(trial):05d}"


def _number(trial: Any) -> int:
    return int(trial.experiment_tag.split("_")[0])


def _param_space(search: Search) -> dict[str, Any]:
    space = {parameter.name: _domain(parameter) for parameter in search.tune.space}
    return {SEED: tune.choice(list(search.seeds)), **space}


def _domain(parameter: ParameterConfig) -> Any:
    if parameter.kind == "choice":
        return tune.choice(list(parameter.choices))
    draw = {"uniform": tune.uniform, "loguniform": tune.loguniform}[parameter.kind]
    return draw(parameter.low, parameter.high)


def _searcher(search: Search, root_seed: int, at_once: int) -> Any:
    points = [dict(point) for point in search.points]
    seed = derive_seed(root_seed, "search") % 2**32  # all that numpy's generators take
    if search.tune.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.ERROR)
        optuna = OptunaSearch(points_to_evaluate=points, seed=seed)
        return ConcurrencyLimiter(optuna, max_concurrent=at_once)
    return BasicVariantGenerator(points, max_concurrent=at_once, random_state=seed)


def _scheduler(search: Search, rounds: int) -> TrialScheduler:
    settings: TuneConfig = search.tune
    if settings.scheduler == "fifo":
        return FIFOScheduler()
    return PatientAsha(
        search.points[0],
        time_attr=ROUND,
        max_t=rounds,
        grace_period=settings.grace_rounds,
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,  # a trial ends by itself after its last round
    )


class PatientAsha(ASHAScheduler):
    """ASHA that never stops the default's trial, and knows its rungs after a restart.

    The default must reach the end, or there would be nothing to compare the best trial with. Tune
    restores trials and searcher, but not the scheduler.
    """

    def __init__(self, default: Point, **options: Any) -> None:
        super().__init__(**options)
        self._default, self._awake = dict(default), False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        memory = _memory_of(trial)
        if not self._awake and os.path.exists(memory):
            self.restore(memory)
        self._awake = True
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        memory = _memory_of(trial)
        self.save(f"{memory}.partial")
        os.replace(f"{memory}.partial", memory)
        return TrialScheduler.CONTINUE if trial.config == self._default else decision


def _memory_of(trial: Any) -> str:
    """A file beside Tune's own state."""
    return f"{trial.storage.experiment_fs_path}/scheduler.pkl"


class _Progress(tune.Callback):
    """Tells the terminal of each round."""

    def __init__(self, console: Console, n_trials: int, rounds: int, first: int) -> None:
        self._console, self._n_trials, self._rounds = console, n_trials, rounds
        self._first = first

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        if ROUND in result:
            done = f"after round {result[ROUND]:.0f} of {self._rounds}"
            self._say(trial, f"{result[OBJECTIVE]:.1f} mm {done}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        last = trial.last_result or {}
        if _FAILURE in last:
            self._say(trial, f"failed: {last[_FAILURE]}")
        elif last.get(ROUND, 0) < self._rounds:
            self._say(trial, "stopped: others are ahead")

    def _say(self, trial: Any, text: str) -> None:
        number = _number(trial) - self._first
        self._console.say(f"  trial {number} (0 to {self._n_trials - 1}): {text}")


def _outcome(result: Any) -> Outcome:
    table, metrics = result.metrics_dataframe, result.metrics or {}
    errors: tuple[float, ...] = ()
    if table is not None and ROUND in table:
        # a round may have been reported twice, before and after an interruption
        rounds = table.dropna(subset=[ROUND]).drop_duplicates(ROUND, keep="last")
        errors = tuple(float(error) for error in rounds.sort_values(ROUND)[OBJECTIVE])
    failure = str(metrics.get(_FAILURE, ""))
    if result.error is not None:
        failure = str(result.error).strip().splitlines()[-1]
    if failure:
        errors = (*errors, math.inf)
    seconds = float(metrics.get("time_total_s", 0.0))
    return Outcome(Path(result.path).name, result.config or {}, errors, seconds, failure)
