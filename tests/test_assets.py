"""Assets: checked, complete, offline afterwards, and clear about what is wrong."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from posegen_ray import asset_list, assets
from posegen_ray.errors import AssetError


def make_wheel(path: Path, members: dict[str, bytes]) -> str:
    """A tiny package file; its sha256."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy(cache, monkeypatch):
    """A two-file asset whose package lies where a user would put it by hand."""
    members = {"toy/data/a.txt": b"first", "toy/data/b.txt": b"second", "toy/code.py": b"print()"}
    (cache / "packages").mkdir(parents=True)
    package = cache / "packages" / "toy-1.0-py3-none-any.whl"
    sha256 = make_wheel(package, members)
    files = tuple(
        asset_list.AssetFile(name, Path(name).name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in members.items()
        if name.endswith(".txt")
    )
    asset = asset_list.Asset(
        name="toy",
        package="posegen-no-such-package",
        registry="pypi",
        version="1.0",
        package_file=package.name,
        package_size=package.stat().st_size,
        package_sha256=sha256,
        licence="CC0",
        what_for="tests",
        files=files,
        platform="any",
    )
    monkeypatch.setitem(assets.REGISTRY, "toy", asset)
    return asset


def test_fetch_takes_only_the_listed_files_and_works_without_the_package_afterwards(toy, cache):
    folder = assets.fetch("toy")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt"]
    (cache / "packages" / toy.package_file).unlink()
    assert assets.fetch("toy") == folder
    assert {row.asset.name: row.state for row in assets.status()}["toy"] == "ready"


def test_a_single_file_asset_is_its_file(toy, monkeypatch):
    monkeypatch.setitem(assets.REGISTRY, "toy", replace(toy, files=toy.files[:1]))
    assert assets.fetch("toy").read_bytes() == b"first"


@pytest.mark.parametrize("change", [b"FIRST", b"fir", None])
def test_a_damaged_file_in_the_cache_is_named_and_kept(toy, change):
    path = assets.fetch("toy") / "a.txt"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change)
    with pytest.raises(AssetError, match=r"damaged: .*a\.txt.*Delete .*posegen assets fetch toy"):
        assets.fetch("toy")
    assert change is None or path.read_bytes() == change
    assert {row.asset.name: row.state for row in assets.status()}["toy"] == "damaged"


def test_a_package_with_a_wrong_checksum_is_refused_and_leaves_nothing(toy, cache):
    package = cache / "packages" / toy.package_file
    package.write_bytes(package.read_bytes()[:-1] + b"?")
    with pytest.raises(AssetError, match=f"sha256 .* instead of {toy.package_sha256}"):
        assets.fetch("toy")
    assert not (cache / "toy").exists()
    assert [p for p in cache.iterdir() if p.name.startswith(".toy-")] == []


def test_without_a_network_the_error_says_where_to_put_the_file(toy, cache, monkeypatch):
    (cache / "packages" / toy.package_file).unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetError) as caught:
        assets.fetch("toy")
    assert str(cache / "packages" / toy.package_file) in caught.value.fix
    assert "could not be fetched from pypi" in caught.value.what


def test_npm_missing_is_said(toy, cache, monkeypatch):
    (cache / "packages" / toy.package_file).unlink()
    monkeypatch.setitem(assets.REGISTRY, "toy", replace(toy, registry="npm"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(AssetError, match=r"npm, which is not installed.*Install Node"):
        assets.fetch("toy")


def test_a_full_disk_is_noticed_before_the_download(toy, monkeypatch):
    monkeypatch.setitem(assets.REGISTRY, "toy", replace(toy, package_size=10**18))
    with pytest.raises(AssetError, match=r"MB free; toy needs"):
        assets.fetch("toy")


def test_an_unwritable_cache_is_said(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"cannot be written.*POSEGEN_CACHE"):
        assets.fetch("toy")


def test_unknown_assets_are_refused_with_the_known_ones():
    with pytest.raises(AssetError, match="Known: blazepose-full"):
        assets.fetch("blazepose-huge")


def test_concurrent_fetches_install_once(toy, monkeypatch):
    installs = []
    install = assets._install

    def slow_install(asset, progress):
        installs.append(asset.name)
        time.sleep(0.2)
        install(asset, progress)

    monkeypatch.setattr(assets, "_install", slow_install)
    found = []
    threads = [threading.Thread(target=lambda: found.append(assets.fetch("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert installs == ["toy"]
    assert len(set(found)) == 1
    assert len(found) == 4


def test_a_whole_tree_is_taken_and_checked(toy, cache, monkeypatch, tmp_path):
    package = cache / "packages" / toy.package_file
    sha256 = make_wheel(
        package, {"p/d/x/1": b"one", "p/d/y/2": b"two", "p/d/top": b"", "q/x/3": b""}
    )
    lines = f"x/1 {hashlib.sha256(b'one').hexdigest()}\n"
    tree = asset_list.AssetTree("p/d", ("x",), 1, 3, hashlib.sha256(lines.encode()).hexdigest())
    asset = replace(toy, files=(), tree=tree, package_sha256=sha256)
    monkeypatch.setitem(assets.REGISTRY, "toy", asset)
    folder = assets.fetch("toy")
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] == ["x/1"]


def test_every_registered_asset_is_complete():
    for asset in assets.REGISTRY.values():
        assert asset.registry in ("pypi", "npm")
        assert len(asset.package_sha256) == 64
        assert asset.licence
        assert asset.size > 0
        for file in asset.files:
            assert len(file.sha256) == 64
    assert len(assets.REGISTRY["mocap-deepmimic"].files) == 15


def test_the_real_estimator_file_is_usable_offline():
    path = assets.fetch("blazepose-full")
    code = "from posegen_ray.assets import fetch; print(fetch('blazepose-full'))"
    env = {**os.environ, "PIP_NO_INDEX": "1"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == str(path)
