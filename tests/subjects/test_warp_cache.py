"""Kernels are compiled once, whatever the number of processes that start at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warp as wp

from posegen_ray.errors import ResourceError
from posegen_ray.subjects import fit_kernels, lattice_kernels, march_kernels
from posegen_ray.subjects.warp_cache import prepare

# a process that loads a tiny kernel module, and says whether it had to compile it
PROGRAM = """
import sys, warp as wp
from posegen_ray.subjects.warp_cache import prepare
wp.config.log_level = wp.LOG_INFO
prepare("cpu", "tiny_kernels")
"""
KERNELS = """
import warp as wp

@wp.kernel(enable_backward=False)
def double(x: wp.array(dtype=float)):
    i = wp.tid()
    x[i] = 2.0 * x[i]
"""


def test_two_processes_share_one_compilation(tmp_path: Path) -> None:
    (tmp_path / "tiny_kernels.py").write_text(KERNELS)
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "WARP_CACHE_PATH": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "CUDA" not in errors
    built = list((tmp_path / "cache").rglob("*tiny_kernels*.o"))
    assert len(built) == 1


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WARP_CACHE_PATH", str(tmp_path / "file" / "warp"))
    with pytest.raises(ResourceError, match="cannot be written"):
        prepare.__wrapped__("cpu", march_kernels.__name__)


def test_a_missing_device_is_named() -> None:
    with pytest.raises(ResourceError, match="cuda:99"):
        prepare("cuda:99", march_kernels.__name__)


@pytest.mark.skipif(not wp.get_cuda_supported_archs(), reason="Warp came without CUDA's compiler")
def test_kernels_compile_for_a_gpu_where_there_is_none(tmp_path: Path) -> None:
    """CUDA's compiler comes with Warp; the C++ in `vector_kernels` has parts for it alone."""
    prepare("cpu", march_kernels.__name__)  # initialises Warp
    for module in (lattice_kernels, march_kernels, fit_kernels):
        made = wp.compile_aot_module(module, arch=90, module_dir=tmp_path, use_ptx=True)
        assert ".target sm_90" in made[0].read_text()
