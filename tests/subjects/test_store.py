"""Subjects survive a round trip, and damage is noticed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bodies import painted_on

from posegen_ray.body import load_body
from posegen_ray.config import BodyConfig, FitConfig
from posegen_ray.errors import SubjectError
from posegen_ray.subjects.deform import LATTICE_TENSORS
from posegen_ray.subjects.store import (
    VoxelSubject,
    list_subjects,
    load_subject,
    read_manifest,
    save_subject,
)


def test_a_subject_survives_the_round_trip(capsule_subject: VoxelSubject, tmp_path: Path) -> None:
    measured = replace(capsule_subject.manifest, psnr_full=33.5, shape=(0.25, -1.0))
    save_subject(replace(capsule_subject, manifest=measured), tmp_path / "a")
    loaded = load_subject(tmp_path / "a")
    assert loaded.manifest.psnr_full == 33.5
    assert loaded.manifest.psnr_person != loaded.manifest.psnr_person  # NaN: not measured
    assert loaded.shape.tolist() == [0.25, -1.0]
    assert torch.equal(loaded.field.values, capsule_subject.field.values)
    assert torch.equal(loaded.field.index, capsule_subject.field.index)
    assert (loaded.field.low, loaded.field.voxel) == (
        capsule_subject.field.low,
        capsule_subject.field.voxel,
    )
    for name in LATTICE_TENSORS:
        assert torch.equal(getattr(loaded.lattice, name), getattr(capsule_subject.lattice, name))
    size = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert size < 30e6


def test_a_whole_person_takes_little_space_and_time(tmp_path: Path) -> None:
    """On Anny, with all of a fit's region filled: fits are pruned, so they are smaller."""
    region = FitConfig().region
    save_subject(painted_on(load_body(BodyConfig()), "whole", region=region), tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    assert 4e6 < size < 30e6
    start = time.process_time()
    load_subject(tmp_path / "whole")
    assert time.process_time() - start < 1.0


def test_the_manifest_is_enough_to_pose_the_body(
    capsule_subject: VoxelSubject, tmp_path: Path
) -> None:
    save_subject(capsule_subject, tmp_path / "a")
    for data in (tmp_path / "a").glob("*.safetensors"):
        data.unlink()
    manifest = read_manifest(tmp_path / "a")
    assert (manifest.name, manifest.body, manifest.shape) == ("capsules", "capsules", (0.0, 0.0))
    with pytest.raises(SubjectError, match="lacks its data file"):
        load_subject(tmp_path / "a")


def test_saving_again_replaces_the_old_version(
    capsule_subject: VoxelSubject, tmp_path: Path
) -> None:
    save_subject(capsule_subject, tmp_path / "a")
    field = replace(capsule_subject.field, values=capsule_subject.field.values * 0.5)
    save_subject(replace(capsule_subject, field=field), tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 2
    assert torch.equal(load_subject(tmp_path / "a").field.values, field.values)


def test_subjects_are_listed_by_name(capsule_subject: VoxelSubject, tmp_path: Path) -> None:
    save_subject(capsule_subject, tmp_path / "b")
    save_subject(capsule_subject, tmp_path / "a")
    (tmp_path / "no-subject").mkdir()
    assert list_subjects(tmp_path) == ["a", "b"]
    assert list_subjects(tmp_path / "nowhere") == []


def test_damage_is_noticed(capsule_subject: VoxelSubject, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with pytest.raises(SubjectError, match="no subject in"):
        load_subject(folder)
    save_subject(capsule_subject, folder)
    (data,) = folder.glob("*.safetensors")
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(SubjectError, match="damaged"):
        load_subject(folder)
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SubjectError, match="damaged"):
        load_subject(folder)
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**good, "format_version": 99}))
    with pytest.raises(SubjectError, match="format version 99"):
        read_manifest(folder)
    manifest.write_text(json.dumps({k: v for k, v in good.items() if k != "shape"}))
    with pytest.raises(SubjectError, match="shape"):
        read_manifest(folder)
    manifest.write_text("{")
    with pytest.raises(SubjectError, match="cannot be read"):
        read_manifest(folder)


def test_a_folder_that_cannot_be_written_is_named(
    capsule_subject: VoxelSubject, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SubjectError, match="could not be written"):
        save_subject(capsule_subject, blocked / "a")
