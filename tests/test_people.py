"""Subjects as the user handles them: fitting one and several capture folders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bodies import capsule_body, capture_of, painted_subject

from posegen_ray import jobs
from posegen_ray.compose import compose_config
from posegen_ray.config import AnerfConfig, RunConfig
from posegen_ray.console import Console
from posegen_ray.drawing import Drawing
from posegen_ray.errors import ConfigError
from posegen_ray.local import LocalBackend
from posegen_ray.people import fit_capture, fit_several
from posegen_ray.subjects.anerf import SkeletonField
from posegen_ray.subjects.capture import write_capture
from posegen_ray.subjects.store import AnerfSubject, list_subjects, load_subject, save_subject

QUICK = ("fit.steps=8", "fit.preview_every=4", "fit.region.voxel=0.02", "runtime=inprocess")


@pytest.fixture
def captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders with pictures of painted capsule figures."""
    monkeypatch.setattr(jobs, "load_body", lambda config: capsule_body())
    folders = []
    for name, hue in (("ann", 0.0), ("bo", 1.0)):
        capture = capture_of(painted_subject(hue=hue), 8, 40, name)
        write_capture(capture, tmp_path / name)
        folders.append(tmp_path / name)
    return folders


def settings(*overrides: str) -> RunConfig:
    return compose_config([*QUICK, *overrides])


def test_several_captures_are_fitted_as_each_alone(captures: list[Path], tmp_path: Path) -> None:
    listed = ",".join(map(str, captures))
    config = settings(f"subjects=[{listed}]", f"out={tmp_path / 'all'}")
    console = Console(quiet=True)
    with LocalBackend(config, console) as backend:
        text = fit_several(config, backend, console)
    assert [line.count("PSNR") for line in text.splitlines()] == [1, 1]
    assert list_subjects(tmp_path / "all") == ["ann", "bo"]
    assert len(list((tmp_path / "all" / "ann" / "fit").glob("preview-*.png"))) == 2

    alone = settings(f"capture={captures[1]}", f"out={tmp_path / 'one'}")
    assert "bo: PSNR" in fit_capture(alone, console)
    together = load_subject(tmp_path / "all" / "bo")
    assert str(load_subject(tmp_path / "one" / "bo").manifest) == str(together.manifest)
    assert together.manifest.fit_steps == 8


def test_who_is_neither_a_capture_nor_a_person_is_named(tmp_path: Path) -> None:
    config = settings(f"subjects=[{tmp_path / 'nobody'}]")
    console = Console(quiet=True)
    with (
        LocalBackend(config, console) as backend,
        pytest.raises(ConfigError, match="nobody' is neither a capture folder nor a person"),
    ):
        fit_several(config, backend, console)


def test_two_captures_of_one_name_are_refused(captures: list[Path]) -> None:
    twin = captures[0].parent / "twin"
    shutil.copytree(captures[0], twin)
    config = settings(f"subjects=[{captures[0]},{twin}]")
    console = Console(quiet=True)
    with (
        LocalBackend(config, console) as backend,
        pytest.raises(ConfigError, match=r"ann and .*twin are both named 'ann'"),
    ):
        fit_several(config, backend, console)


def test_people_whose_light_is_fast_need_their_field_named(tmp_path: Path) -> None:
    field = SkeletonField(torch.zeros(24, 3), AnerfConfig(depth=2, width=8))
    manifest = replace(painted_subject().manifest, name="ann")
    save_subject(AnerfSubject(manifest, field), tmp_path / "people" / "ann")
    cast = ["subject=folder", f"subject.folder={tmp_path}/people", "subject.names=[ann]"]
    for more in ([], ["field=anerf"]):
        config = settings(*cast, *more)
        with LocalBackend(config, Console(quiet=True)) as backend:
            drawing = Drawing(config, tmp_path, backend, Console(quiet=True))
            if more:
                assert [name for name, _ in drawing.subjects()] == ["ann"]
            else:
                with pytest.raises(ConfigError, match="field=anerf"):
                    drawing.subjects()
