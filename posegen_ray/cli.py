"""posegen <command> [hydra overrides]

Parses, dispatches, turns errors into one line and an exit code; the work is elsewhere. Heavy
imports (torch, Ray) happen inside the command that needs them.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posegen_ray.errors import ConfigError, PosegenError

if TYPE_CHECKING:
    from posegen_ray.config import RunConfig
    from posegen_ray.console import Console
    from posegen_ray.local import Backend

USAGE = """\
usage: posegen <command> [key=value ...]

  demo       the whole of PoseGen: fit people, train, compare, report
  assets     list | fetch [NAME ...]: third-party files, with their licences
  convert    make a capture folder from a data set (convert.format=… convert.source=DIR out=DIR)
  fit        make a subject from a capture folder (capture=DIR; several: subjects=[DIR,DIR])
  subjects   list | show NAME | turntable NAME: fitted people (out=DIR for the pictures)
  pretrain   a second estimator, trained on source images alone (estimator=compact_hmr; out=DIR)
  train      adversarial training of the generator, without the comparison
  generate   labelled images from a trained run (run=DIR n=100 out=DIR
             format=folder|parquet|webdataset|spin|bedlam); goes on where it was interrupted
  dataset    show DIR: pictures of such a set with its labels drawn (n=9 out=FILE.png)
  evaluate   test the estimators of a run again (run=DIR), or an estimator, or those of a run, on a
             public test set (dataset=3dpw|mpi_inf_3dhp|h36m|surreal data_root=DIR), or on people
             marked in pictures (dataset=keypoints dataset.labels=FILE data_root=DIR)
  experiment a larger comparison: controls and test sets (experiment=ood), PoseGen's parts
             (experiment=ablation), or several estimators before and after, on public test sets
             (experiment=paper estimators=[NAME,…] datasets=[NAME,…] data_root=DIR)
  tune       search for better settings, judged on validation images (tune=asha|optuna|random
             n_trials=N); resume=DIR goes on
  report     write a run's report.html again (run=DIR)
  atlas      what the estimator gets wrong by pose, viewpoint and body part, before and after:
             atlas.html and atlas.csv in the run folder (run=DIR arm=posegen)
  doctor     what is there, what is missing, and what each thing is needed for

Settings are Hydra overrides:
  posegen demo experiment=small run_dir=runs/small
  posegen demo runtime=inprocess seed=1
  posegen experiment experiment=ood seeds=3 arms=[baseline,random,posegen]
  posegen train resume=runs/train
seeds, arms and checkpoint are short for experiment.seeds, experiment.arms and estimator.checkpoint.
All of them: conf/ and posegen_ray/config/. POSEGEN_DEBUG=1 adds tracebacks and debug logs.
"""


def demo(arguments: Sequence[str]) -> int:
    """The whole comparison; conf/experiment chooses the budget."""
    from posegen_ray.experiment import run_experiment

    config, folder, console = _start_run(arguments)
    with _backend(config, folder, console) as backend:
        print(run_experiment(config, folder, backend, console))
    console.say(f"report: {folder / 'report.html'}")
    return 0


def assets(arguments: Sequence[str]) -> int:
    """Lists or fetches third-party files."""
    from posegen_ray import assets as registry

    action, names = (arguments[0], list(arguments[1:])) if arguments else ("list", [])
    if action == "list" and not names:
        print(registry.describe())
        return 0
    if action == "fetch":
        for name in names or registry.DEFAULT_ASSETS:
            print(f"{name}: {registry.fetch(name)}")
        return 0
    raise ConfigError(
        f"`posegen assets {' '.join(arguments)}` is not a command.",
        "Use `posegen assets list` or `posegen assets fetch [NAME ...]`.",
    )


def convert(arguments: Sequence[str]) -> int:
    """One person of a data set -> one capture folder."""
    from posegen_ray.people import convert_capture

    config, console = _settings(arguments)
    print(convert_capture(config, console))
    return 0


def fit(arguments: Sequence[str]) -> int:
    """Capture folders -> subject folders: one (capture=), or several side by side (subjects=)."""
    from posegen_ray.people import fit_capture, fit_several

    config, console = _settings(arguments)
    if config.subjects:
        with _backend(config, Path(config.out or "."), console, serving=False) as backend:
            print(fit_several(config, backend, console))
    else:
        print(fit_capture(config, console))
    return 0


def subjects(arguments: Sequence[str]) -> int:
    """Lists subjects, or shows one in words (show) or in pictures (turntable)."""
    from posegen_ray import people

    words = [word for word in arguments if "=" not in word]
    config, _ = _settings([word for word in arguments if "=" in word])
    show = {"show": people.show_person, "turntable": people.picture_person}
    if words in ([], ["list"]):
        print(people.list_people(config))
    elif len(words) == 2 and words[0] in show:
        print(show[words[0]](config, words[1]))
    else:
        raise ConfigError(
            f"`posegen subjects {' '.join(words)}` is not a command.",
            "Use `posegen subjects list`, `show NAME` or `turntable NAME`.",
        )
    return 0


def pretrain(arguments: Sequence[str]) -> int:
    """A second estimator, trained on source images alone."""
    from posegen_ray.pretrain import check_pretraining, run_pretraining

    defaults = {"estimator": "compact_hmr", "run_dir": "runs/pretrain"}
    config, folder, console = _start_run(_with(arguments, defaults), check_pretraining)
    with _backend(config, folder, console) as backend:
        print(run_pretraining(config, folder, backend, console))
    return 0


def train(arguments: Sequence[str]) -> int:
    """Adversarial training without the comparison."""
    from posegen_ray.experiment import check_run, run_training

    arguments = _with(arguments, {"run_dir": "runs/train"})
    config, folder, console = _start_run(arguments, functools.partial(check_run, compared=False))
    with _backend(config, folder, console) as backend:
        print(run_training(config, folder, backend, console))
    return 0


def generate(arguments: Sequence[str]) -> int:
    """Labelled images from a trained run."""
    from posegen_ray.experiment import run_generation

    config, console = _settings(arguments)
    run, config = _open_run(config, arguments, "seed", "generator.condition")
    with _backend(config, run, console) as backend:
        print(run_generation(config, run, backend, console))
    return 0


def dataset(arguments: Sequence[str]) -> int:
    """Shows a generated set: some of its images, their labels drawn over them."""
    from posegen_ray.export import picture_dataset

    words = [word for word in arguments if "=" not in word]
    settings = [word for word in arguments if "=" in word]
    if len(words) != 2 or words[0] != "show":
        raise ConfigError(
            f"`posegen dataset {' '.join(words)}` is not a command.",
            "Use `posegen dataset show DIR [n=9] [out=FILE.png]`.",
        )
    if not any(word.startswith("n=") for word in settings):
        settings.append("n=9")
    config, _ = _settings(settings)
    print(picture_dataset(Path(words[1]), config.n, config.seed, config.out))
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Tests a run's estimators again, from their checkpoints; with dataset=, on a public set."""
    from posegen_ray.experiment import run_evaluation

    config, console = _settings(arguments)
    if config.dataset.name:
        from posegen_ray.public_sets import run_public_evaluation

        print(run_public_evaluation(config, console))
        return 0
    run, config = _open_run(config, arguments, "evaluation")
    with _backend(config, run, console) as backend:
        print(run_evaluation(config, run, backend, console))
    return 0


def experiment(arguments: Sequence[str]) -> int:
    """A comparison as `demo`; or the paper's table: several estimators on public test sets."""
    from posegen_ray.compose import compose_config
    from posegen_ray.console import Console
    from posegen_ray.paper import run_paper

    config = compose_config(arguments)
    if not (config.estimators or config.datasets or config.experiment.name == "paper"):
        return demo(arguments)
    console = Console()
    print(run_paper(arguments, lambda config, at: _backend(config, at, console), console))
    return 0


def tune(arguments: Sequence[str]) -> int:
    """A sweep over settings, judged on validation images only; conf/tune holds the search space."""
    from posegen_ray.experiment import open_run_folder
    from posegen_ray.tuning import check_sweep, keep_overrides, run_sweep

    config, console = _settings(arguments)
    if not config.resume:
        check_sweep(config)  # before a folder is made
    overrides = [argument for argument in arguments if not argument.startswith("resume=")]
    config, folder = open_run_folder(config, overrides, console.say)
    check_sweep(config)
    keep_overrides(folder, overrides)
    from posegen_ray.runtime.tune import TuneBackend

    with TuneBackend(config, folder, console) as backend:
        print(run_sweep(config, folder, backend, console))
    console.say(f"report: {folder / 'report.html'}")
    return 0


def report(arguments: Sequence[str]) -> int:
    """Writes report.html again from what the run, or the sweep, left."""
    from posegen_ray.experiment import rewrite_report
    from posegen_ray.tuning import is_sweep, rewrite_sweep_report

    config, _ = _settings(arguments)
    run, config = _open_run(config, arguments, "evaluation")
    page = rewrite_sweep_report(run) if is_sweep(run) else rewrite_report(run, config.evaluation)
    print(page)
    return 0


def atlas(arguments: Sequence[str]) -> int:
    """Failures before and after one arm, as a page and a table, from what the run left."""
    from posegen_ray.experiment import rewrite_atlas

    config, _ = _settings(arguments)
    run, config = _open_run(config, arguments, "arm", "evaluation")
    print("\n".join(map(str, rewrite_atlas(run, config.arm, config.evaluation))))
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """What is there, what is missing, and what it is needed for."""
    from posegen_ray.doctor import examine

    config, _ = _settings(arguments)
    text, healthy = examine(config)
    print(text)
    return 0 if healthy else 1


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "assets": assets,
    "convert": convert,
    "fit": fit,
    "subjects": subjects,
    "pretrain": pretrain,
    "train": train,
    "generate": generate,
    "dataset": dataset,
    "evaluate": evaluate,
    "experiment": experiment,
    "tune": tune,
    "report": report,
    "atlas": atlas,
    "doctor": doctor,
}


SHORT = {
    "arms": "experiment.arms",
    "seeds": "experiment.seeds",
    "checkpoint": "estimator.checkpoint",
}


def _in_full(argument: str) -> str:
    """A setting by its whole name; seeds=3 are the seeds 0, 1 and 2."""
    key, _, value = argument.partition("=")
    if key == "seeds" and value.isdecimal():
        value = f"[{','.join(map(str, range(int(value))))}]"
    return f"{SHORT[key]}={value}" if key in SHORT else argument


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit code. Never lets a PosegenError escape."""
    # before numpy is imported: its results depend on its number of threads, and a run must not
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    debug = bool(os.environ.get("POSEGEN_DEBUG"))
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s"
    )
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"posegen: there is no command {argv[0]!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    if any(word in ("-h", "--help") for word in argv[1:]):
        print(f"posegen {argv[0]}: {COMMANDS[argv[0]].__doc__}\n\n{USAGE}")
        return 0
    try:
        return COMMANDS[argv[0]]([_in_full(argument) for argument in argv[1:]])
    except KeyboardInterrupt:
        print(
            f"\nposegen: interrupted. What is finished is kept. {_how_to_go_on(argv)}",
            file=sys.stderr,
        )
        return 130
    except PosegenError as error:
        if debug:
            traceback.print_exc()
        print(f"posegen: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"posegen: {error.strerror or error}{where}. Free space or choose a writable folder "
            "with run_dir=…, then go on with resume=<run folder>.",
            file=sys.stderr,
        )
        return 1


def _how_to_go_on(argv: Sequence[str]) -> str:
    """After an interruption."""
    paper = any(word.startswith("experiment=paper") for word in argv)
    if argv[0] in ("demo", "train", "tune", "pretrain", "experiment") and not paper:
        command = f"posegen {argv[0]} resume=<run folder>"
        return f"To go on, with the settings it was started with: {command}"
    return "The same command goes on from there."


def entry() -> None:
    """The `posegen` console script."""
    sys.exit(main(sys.argv[1:]))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _settings(arguments: Sequence[str]) -> tuple[RunConfig, Console]:
    from posegen_ray.compose import compose_config
    from posegen_ray.console import Console

    return compose_config(arguments), Console()


def _with(arguments: Sequence[str], defaults: Mapping[str, str]) -> list[str]:
    """The command line with what a command takes for granted; a resumed run knows it already."""
    given = {argument.split("=")[0] for argument in arguments}
    if "resume" in given:
        return list(arguments)
    return [*(f"{k}={v}" for k, v in defaults.items() if k not in given), *arguments]


def _start_run(
    arguments: Sequence[str], check: Callable[[RunConfig], None] | None = None
) -> tuple[RunConfig, Path, Console]:
    """A new run folder, or the one named by resume= with the settings that it was started with."""
    from posegen_ray.experiment import check_run, open_run_folder

    config, console = _settings(arguments)
    overrides = [argument for argument in arguments if not argument.startswith("resume=")]
    config, folder = open_run_folder(config, overrides, console.say, check or check_run)
    return config, folder, console


def _open_run(
    config: RunConfig, arguments: Sequence[str], *may_change: str
) -> tuple[Path, RunConfig]:
    from posegen_ray.experiment import open_finished_run

    return open_finished_run(config, arguments, may_change)


def _backend(config: RunConfig, folder: Path, console: Console, serving: bool = True) -> Backend:
    """Ray, or everything in this process (runtime=inprocess)."""
    if config.runtime.name == "inprocess":
        from posegen_ray.local import LocalBackend

        return LocalBackend(config, console)
    from posegen_ray.runtime.backend import RayBackend

    return RayBackend(config, folder, console, serving)


if __name__ == "__main__":
    entry()
