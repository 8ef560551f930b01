"""People are dressed once a machine, and anew where what is kept is damaged or of other code."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from posegen_ray import dressing
from posegen_ray.body.model import BodyModel
from posegen_ray.dressing import dressed
from posegen_ray.subjects.raycast import TexturedMesh
from posegen_ray.subjects.wardrobe import Person, people


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was dressed, in an empty cache."""
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path))
    names: list[str] = []
    dress = Person.dress

    def noting(person: Person, body: BodyModel, texture_size: int) -> TexturedMesh:
        names.append(person.name)
        return dress(person, body, 64)

    monkeypatch.setattr(Person, "dress", noting)
    return names


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "dressed").iterdir())


def test_a_person_is_dressed_once_and_read_as_made(
    made: list[str], tmp_path: Path, body: BodyModel
) -> None:
    one, other = people("val")[:2]
    first, second = dressed(one, body), dressed(one, body)
    dressed(other, body)
    assert made == [one.name, other.name]
    assert len(kept(tmp_path)) == 2
    for name, tensor in vars(first).items():
        assert tensor.dtype == vars(second)[name].dtype
        torch.testing.assert_close(vars(second)[name], tensor, rtol=0, atol=0)


def test_what_is_damaged_is_made_again(
    made: list[str], tmp_path: Path, body: BodyModel, caplog: pytest.LogCaptureFixture
) -> None:
    one = people("val")[0]
    dressed(one, body)
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        dressed(one, body)
    assert "made again" in caplog.text
    assert len(made) == 2
    assert file.read_bytes() == whole


def test_other_code_or_another_body_makes_it_anew_and_leaves_nothing_old(
    made: list[str], tmp_path: Path, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = people("val")[:2]
    dressed(one, body)
    dressed(other, body)
    before = kept(tmp_path)
    monkeypatch.setattr(dressing, "code_of_making", lambda: "changed")
    dressed(one, body)
    changed = deepcopy(body)
    changed.template *= 1.01  # as another file under the same name would
    dressed(one, changed)
    assert made == [one.name, other.name, one.name, one.name]
    after = kept(tmp_path)
    assert len(after) == 2
    assert len(set(before) & set(after)) == 1


def test_a_cache_that_cannot_be_written_is_only_a_note(
    made: list[str], tmp_path: Path, body: BodyModel, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dressed").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        dressed(people("val")[0], body)
    assert "cannot be kept" in caplog.text
