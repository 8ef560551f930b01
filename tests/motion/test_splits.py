"""Splits: decided by config, no frame used twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posegen_ray.config import MotionConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.motion.splits import MotionSplits, gather, load_splits


@pytest.fixture(scope="module")
def splits() -> MotionSplits:
    return load_splits(MotionConfig())


def test_default_clips_are_where_the_config_puts_them(splits: MotionSplits) -> None:
    config = MotionConfig()
    assert [clip.name for clip in splits.source_train] == config.source
    assert [clip.name for clip in splits.source_test] == config.source
    assert [clip.name for clip in splits.validation] == config.validation
    assert [clip.name for clip in splits.ood] == config.ood


def test_halves_are_apart_in_time_also_where_a_loop_closes(splits: MotionSplits) -> None:
    gap = 3  # frames, 0.1 s
    for first, second in zip(splits.source_train, splits.source_test, strict=True):
        assert first.start == 0
        assert second.start == len(first) + gap
        assert abs(len(first) - len(second)) <= 1
        assert len(first) >= 9


def test_no_pose_is_in_two_splits(splits: MotionSplits) -> None:
    parts = [
        gather(part)[0].rotations.flatten(1)
        for part in (splits.source_train, splits.source_test, splits.validation, splits.ood)
    ]
    for one in range(4):
        for other in range(one):
            assert torch.cdist(parts[one], parts[other]).min() > 1e-3


def test_gather_keeps_the_clips_names(splits: MotionSplits) -> None:
    poses, names = gather(splits.source_train)
    assert len(poses) == len(names) == sum(map(len, splits.source_train))
    assert names[0] == "walk"
    assert names[-1] == "spin"


def test_own_files_join_the_source_unless_they_are_listed(tmp_path: Path) -> None:
    frame = [1 / 30, 0, 0.88, 0, *[1, 0, 0, 0] * 4, 0, *[1, 0, 0, 0] * 2, 0, *[1, 0, 0, 0], 0]
    frame += [*[1, 0, 0, 0] * 2, 0]
    paths = []
    for name in ("mine", "yours", "other"):
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text(json.dumps({"Frames": [frame] * 40}))
    config = MotionConfig(
        source=["other"], validation=["yours"], ood=["walk"], paths=[str(p) for p in paths]
    )
    found = load_splits(config)
    assert [clip.name for clip in found.source_train] == ["other", "mine"]
    assert [clip.name for clip in found.validation] == ["yours"]
    assert [clip.name for clip in found.ood] == ["walk"]
    # a clip is read once a process, but again when its file has changed
    assert load_splits(config).validation[0] is found.validation[0]
    paths[1].write_text(json.dumps({"Frames": [frame] * 60}))
    assert len(load_splits(config).validation[0]) > len(found.validation[0])
    twice = [*config.paths, str(tmp_path / "again" / "mine.bvh")]
    with pytest.raises(ConfigError, match="same name"):
        load_splits(MotionConfig(paths=twice))


def test_mistakes_in_the_config_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"'walk' is in motion\.ood and in motion\.source"):
        MotionConfig(ood=["walk"])
    with pytest.raises(ConfigError, match=r"motion\.validation is empty"):
        MotionConfig(validation=[])
    with pytest.raises(ConfigError, match="frames_per_second"):
        MotionConfig(frames_per_second=0)
    with pytest.raises(ConfigError, match="gap_seconds"):
        MotionConfig(gap_seconds=-1)
    with pytest.raises(ConfigError, match=r"no clip named 'wlak'.*Known: .*walk"):
        load_splits(MotionConfig(source=["wlak"]))
    with pytest.raises(DataError, match=r"'walk' has only .* too short"):
        load_splits(MotionConfig(source=["walk"], gap_seconds=1.0))
