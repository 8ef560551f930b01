"""Run folders: nothing is overwritten, and a resumed run keeps the settings it was started with."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from least import LEAST

from posegen_ray.cli import main
from posegen_ray.compose import compose_config
from posegen_ray.config import RunConfig
from posegen_ray.errors import ConfigError, ResourceError
from posegen_ray.experiment import open_finished_run, open_run_folder


def test_an_earlier_run_is_moved_aside_and_said(tmp_path):
    config = compose_config([f"run_dir={tmp_path}/run"])
    said = []
    open_run_folder(config, [], said.append)
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert not said
    open_run_folder(config, [], said.append)
    assert (tmp_path / "run.1" / "summary.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert "run.1" in said[0]
    open_run_folder(config, [], said.append)
    assert (tmp_path / "run.2").exists()


def test_resume_takes_the_settings_of_the_run(tmp_path):
    started = compose_config([f"run_dir={tmp_path}/run", "training.rounds=7"])
    open_run_folder(started, [], lambda _: None)
    again = compose_config([f"resume={tmp_path}/run", "runtime=inprocess"])
    config, folder = open_run_folder(again, ["runtime=inprocess"], lambda _: None)
    assert folder == tmp_path / "run"
    assert config.training.rounds == 7
    assert config.runtime.name == "inprocess"


def test_a_resumed_run_goes_on_where_it_was_unless_told_otherwise(tmp_path):
    started = compose_config([f"run_dir={tmp_path}/run", "runtime=inprocess"])
    open_run_folder(started, [], lambda _: None)
    again = compose_config([f"resume={tmp_path}/run"])
    assert open_run_folder(again, [], lambda _: None)[0].runtime.name == "inprocess"
    elsewhere = compose_config([f"resume={tmp_path}/run", "runtime=laptop"])
    assert open_run_folder(elsewhere, ["runtime=laptop"], lambda _: None)[0].runtime.name == "ray"


def test_resume_refuses_settings_that_would_change_the_run(tmp_path):
    started = compose_config([f"run_dir={tmp_path}/run"])
    open_run_folder(started, [], lambda _: None)
    again = compose_config([f"resume={tmp_path}/run", "training.rounds=7"])
    with pytest.raises(ConfigError, match=r"training.rounds=7.*new run"):
        open_run_folder(again, ["training.rounds=7"], lambda _: None)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    config = replace(compose_config([]), run_dir=str(tmp_path / "file" / "run"))
    with pytest.raises(ResourceError, match="cannot be written"):
        open_run_folder(config, [], lambda _: None)


def test_finished_run_must_be_named_and_exist(tmp_path):
    with pytest.raises(ConfigError, match="No run is named"):
        open_finished_run(compose_config([]))
    with pytest.raises(ConfigError, match="not the configuration of a run"):
        open_finished_run(compose_config([f"run={tmp_path}"]))


def test_a_finished_run_can_be_asked_for_a_part(tmp_path):
    started = compose_config([f"run_dir={tmp_path}/run", "generator.condition.clips=[walk*]"])
    open_run_folder(started, [], lambda _: None)
    asked = ["generator.condition.azimuth_low=135", "generator.condition.azimuth_high=225"]
    config = finished(tmp_path, *asked)
    condition = config.generator.condition
    assert condition.clips == ["walk*"]
    assert (condition.azimuth_low, condition.azimuth_high) == (135, 225)
    assert condition.elevation_low == started.generator.condition.elevation_low
    # also for what is the default elsewhere
    asked = ["generator.condition.clips=[]", "seed=3", "n=7", "runtime=inprocess"]
    config = finished(tmp_path, *asked)
    assert config.generator.condition.clips == []
    assert (config.seed, config.n, config.runtime.name) == (3, 7, "inprocess")


def test_a_finished_run_keeps_its_settings(tmp_path):
    open_run_folder(compose_config([f"run_dir={tmp_path}/run"]), [], lambda _: None)
    with pytest.raises(ConfigError, match=r"'generator.share=0.1' would change.*seed…"):
        finished(tmp_path, "generator.share=0.1")


def test_runs_with_one_storage_keep_their_checkpoints_apart(tmp_path, capsys):
    kept = tmp_path / "kept"
    train = ["train", "estimator=black_box", "estimator.target=test_run_folder:middle", *LEAST]
    train += ["estimator.input_size=32", "runtime=inprocess", f"training.storage={kept}"]
    for name in ("one", "other"):
        assert main([*train, f"run_dir={tmp_path}/{name}", f"seed={len(name)}"]) == 0
        assert not (tmp_path / name / "drawn").exists()
        assert (kept / name / "seed_0" / "checkpoint_000000").exists()
    # what another run wrote is not gone on with
    settings = [*train[1:], f"run_dir={tmp_path}/third", "seed=3", "generator.tumble=0"]
    open_run_folder(compose_config(settings), [], print, lambda config: None)
    shutil.copytree(kept / "one", kept / "third")
    assert main(["train", f"resume={tmp_path}/third", "runtime=inprocess"]) == 1
    assert "with other settings or people" in capsys.readouterr().err


def middle(images):
    """An estimator of sorts."""
    return images.mean((1, 2, 3)).numpy()[:, None, None] * np.ones((1, 12, 3))


def finished(folder: Path, *overrides: str) -> RunConfig:
    """The settings of the run in `folder`/run as `posegen generate` takes them."""
    words = [f"run={folder}/run", *overrides]
    may_change = ("seed", "generator.condition")
    return open_finished_run(compose_config(words), words, may_change)[1]
