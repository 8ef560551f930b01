"""A checkpoint comes back exactly, or says that it is broken; it is never half there."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.errors import CheckpointError


def trained_state():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "layer": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [{"error": 1.5, "skipped": float("nan")}],
        "generators": [{"weight": torch.arange(3.0)}, {"weight": torch.arange(3.0) + 1}],
        "nothing": None,
    }


def test_state_comes_back_exactly(tmp_path):
    state = trained_state()
    back = load_checkpoint(save_checkpoint(tmp_path / "one", state))
    assert torch.equal(back["layer"]["weight"], state["layer"]["weight"])
    moments = back["optimizer"]["state"]
    assert set(moments) == {0, 1}  # integer keys stay integers
    assert torch.equal(moments[0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])
    assert back["optimizer"]["param_groups"][0]["lr"] == 0.1
    assert [g["weight"].tolist() for g in back["generators"]] == [[0, 1, 2], [1, 2, 3]]
    assert back["history"][0]["error"] == 1.5
    assert back["nothing"] is None
    fresh = torch.optim.Adam(torch.nn.Linear(3, 2).parameters(), 0.5)
    fresh.load_state_dict(back["optimizer"])
    assert fresh.param_groups[0]["lr"] == 0.1


def test_saving_again_replaces_the_old_one(tmp_path):
    save_checkpoint(tmp_path / "one", {"x": 1})
    save_checkpoint(tmp_path / "one", {"x": 2})
    assert load_checkpoint(tmp_path / "one") == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_tensors_are_noticed(tmp_path, keep):
    folder = save_checkpoint(tmp_path / "one", trained_state())
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"truncated.*Resume from an earlier"):
        load_checkpoint(folder)


def test_truncated_manifest_and_missing_files_are_noticed(tmp_path):
    folder = save_checkpoint(tmp_path / "one", trained_state())
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(folder)
    manifest.write_text(json.dumps({**json.loads(whole), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(folder)
    manifest.unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing"):
        load_checkpoint(folder)


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "one", {"x": torch.zeros(4)})
    code = (
        "import signal, sys, torch\n"
        "from pathlib import Path\n"
        "from posegen_ray.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: save_checkpoint(Path(sys.argv[1]), {'x': torch.zeros(1_000_000)})\n"
        "except OSError as error: print('refused', error)\n"
    )
    limit = 100_000  # bytes a file: every write beyond fails, as on a full disk
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert "refused" in run.stdout, run.stderr
    assert torch.equal(load_checkpoint(tmp_path / "one")["x"], torch.zeros(4))
