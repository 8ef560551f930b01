"""The command line: one clear line an error, and exit codes that scripts can trust."""

import numpy as np
import pytest
from bodies import capsule_body
from PIL import Image

from posegen_ray import people
from posegen_ray.cli import COMMANDS, main
from posegen_ray.compose import compose_config
from posegen_ray.subjects.store import save_subject


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2
    assert main(["dance"]) == 2
    assert "no command 'dance'" in capsys.readouterr().err


def test_unknown_setting_is_one_line_and_code_2(capsys):
    assert main(["doctor", "trainig.rounds=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("posegen: Unknown setting 'trainig.rounds'.")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("seeds=3", "experiment.seeds=[0,1,2]"),
        ("seeds=[4,2]", "experiment.seeds=[4,2]"),
        ("arms=[baseline,random]", "experiment.arms=[baseline,random]"),
        ("checkpoint=model.pt", "estimator.checkpoint=model.pt"),
        ("seed=3", "seed=3"),
    ],
)
def test_short_names_are_settings_by_their_whole_name(monkeypatch, short, full):
    told = []
    monkeypatch.setitem(COMMANDS, "experiment", lambda arguments: told.extend(arguments) or 0)
    assert main(["experiment", "experiment=ood", short]) == 0
    assert told == ["experiment=ood", full]
    assert compose_config(["estimator=spin", told[1]])  # it is one


def test_doctor_says_what_is_missing_and_why(capsys):
    main(["doctor", "body.smpl_folder=/nowhere"])
    text = capsys.readouterr().out
    assert "blazepose-full" in text
    assert "none in /nowhere; needed for body=smpl" in text
    assert "experiment=ablation, demo, full, ood, paper, small, tiny" in text


def test_doctor_finds_smpl_under_its_published_name(capsys, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "basicModel_f_lbs_10_207_0_v1.0.0.pkl").touch()
    main(["doctor", f"body.smpl_folder={tmp_path}"])
    assert "basicModel_f_lbs_10_207_0_v1.0.0.pkl" in capsys.readouterr().out


def test_assets_list_shows_licences(capsys):
    assert main(["assets", "list"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out


def test_unknown_asset_and_action(capsys):
    assert main(["assets", "fetch", "gold"]) == 1
    assert "gold" in capsys.readouterr().err
    assert main(["assets", "sell"]) == 2


@pytest.mark.parametrize("command", ["generate", "evaluate", "report", "atlas"])
def test_run_must_be_named_and_exist(command, capsys, tmp_path):
    assert main([command, "runtime=inprocess"]) == 2
    assert "run=<run folder>" in capsys.readouterr().err
    assert main([command, "runtime=inprocess", f"run={tmp_path}"]) == 2
    assert "not the configuration of a run" in capsys.readouterr().err


def test_dataset_must_be_named_and_exist(capsys, tmp_path):
    assert main(["dataset", "show"]) == 2
    assert "dataset show DIR" in capsys.readouterr().err
    assert main(["dataset", "show", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err
    assert main(["generate", "format=coco"]) == 2
    assert "webdataset" in capsys.readouterr().err


def test_run_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "runtime=inprocess", f"run_dir={tmp_path}/file/run"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_missing_capture_is_named(capsys, tmp_path):
    assert main(["fit"]) == 2
    assert main(["fit", f"capture={tmp_path}/none"]) == 1
    assert "none" in capsys.readouterr().err


def test_missing_subject_is_named(capsys, tmp_path):
    arguments = ["subject=folder", f"subject.folder={tmp_path}", "subject.names=[zoe]"]
    code = main(["train", "runtime=inprocess", f"run_dir={tmp_path}/run", *arguments])
    assert code == 1
    assert "no subject 'zoe'" in capsys.readouterr().err


def test_resume_refuses_other_settings(capsys, tmp_path):
    assert main(["train", f"resume={tmp_path}"]) == 2
    assert "not the configuration of a run" in capsys.readouterr().err


def test_subjects_are_listed_shown_and_pictured(capsys, tmp_path, capsule_subject, monkeypatch):
    save_subject(capsule_subject, tmp_path / "capsules")
    where = f"subject.folder={tmp_path}"
    assert main(["subjects", "list", where]) == 0
    assert "capsules" in capsys.readouterr().out
    assert main(["subjects", "show", "capsules", where]) == 0
    shown = capsys.readouterr().out
    assert "painted for tests" in shown
    assert "CC0" in shown
    assert main(["subjects", "turntable", "capsules", where]) == 1  # Anny cannot pose it
    assert "body=capsules" in capsys.readouterr().err
    monkeypatch.setattr(people, "load_body", lambda config: capsule_body())
    assert main(["subjects", "turntable", "capsules", where, f"out={tmp_path}/seen"]) == 0
    assert capsys.readouterr().out.split() == [
        f"{tmp_path}/seen/turntable.gif",
        f"{tmp_path}/seen/poses.png",
    ]
    with Image.open(tmp_path / "seen" / "turntable.gif") as animation:
        assert (animation.n_frames, animation.size) == (36, (256, 256))
        front = np.asarray(animation.convert("RGB"), float)
        animation.seek(18)
        assert np.abs(front - np.asarray(animation.convert("RGB"), float)).mean() > 2
    with Image.open(tmp_path / "seen" / "poses.png") as sheet:
        assert sheet.size == (6 * 256, 3 * 256)
    assert main(["subjects", "show", "zoe", where]) == 1
    assert "Known: capsules" in capsys.readouterr().err
    assert main(["subjects", "dance", where]) == 2
