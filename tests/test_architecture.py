"""The import rule: a module imports only from parts of the package that come before its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import posegen_ray

PACKAGE = Path(posegen_ray.__file__).parent

# Lowest first; parts on one line may import each other.
LAYERS = (
    "errors",
    "pickles files",
    "config seeding console compose",
    "asset_list",
    "assets",
    "body records",
    "context checkpoint checkpoint_store meter",
    "motion datasets",
    "subjects",
    "generation",
    "estimators evaluation",
    "scene photographs",
    "judging",
    "adversary",
    "dressing",
    "studio",
    "training",
    "local",
    "jobs",
    "people",
    "drawing",
    "pretrain",
    "arms notes",
    "arm_images",
    "run",
    "findings",
    "public_sets",
    "export",
    "experiment",
    "paper",
    "tuning",
    "runtime",
    "doctor",
    "cli",
    "__main__",
)
LEVEL = {part: number for number, line in enumerate(LAYERS) for part in line.split()}
# These may be imported by anybody.
EVERYWHERE = {"errors", "config", "records", "seeding"}
FORBIDDEN = {("estimators", "generation"), ("generation", "estimators")}
# cli imports runtime when a command needs it; nobody else knows that Ray exists
MAY_KNOW_RUNTIME = {"runtime", "cli", "__main__"}
NO_HEAVY = ("subjects", "generation", "estimators", "adversary")


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Full names of imported modules (also those inside functions)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            found |= (
                {f"{module}.{alias.name}" for alias in node.names}
                if module == "posegen_ray"
                else {module}
            )
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_comes_before_it(path):
    own = part_of(path)
    if own == "__init__":
        assert not [name for name in imports(path) if name.startswith("posegen_ray")]
        return
    assert own in LEVEL, f"{own} has no place in LAYERS"
    for name in imports(path):
        if not name.startswith("posegen_ray."):
            continue
        other = name.split(".")[1]
        if other == own or other in EVERYWHERE:
            continue
        assert (own, other) not in FORBIDDEN, f"{own} must not import {other}"
        assert LEVEL[other] <= LEVEL[own], f"{own} must not import {other}: it comes later"
        if other == "runtime":
            assert own in MAY_KNOW_RUNTIME, f"{own} must not know the runtime"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_is_imported_only_by_the_runtime(path):
    uses = {name for name in imports(path) if name.split(".")[0] == "ray"}
    assert not uses or part_of(path) == "runtime", f"{path} imports {uses}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_computing_parts_need_no_configuration_framework(path):
    if part_of(path) in NO_HEAVY:
        assert not {n.split(".")[0] for n in imports(path)} & {"hydra", "omegaconf", "ray"}
    assert "anny" not in {n.split(".")[0] for n in imports(path, top_level_only=True)}


def test_command_line_and_local_backend_start_without_ray():
    for part in ("cli.py", "local.py"):
        assert not [
            name
            for name in imports(PACKAGE / part, top_level_only=True)
            if name.startswith(("ray", "posegen_ray.runtime"))
        ]


def test_processes_that_only_count_keep_or_wait_start_without_torch():
    """It is seconds and 300 MB in each."""
    names = ("progress", "generator_store", "render_server")
    code = "import sys" + "".join(f", posegen_ray.runtime.{name}" for name in names)
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_networks_that_few_processes_need_are_imported_late():
    """torchvision and timm take 200 MB; only three modules may import them at once."""
    networks = ("spin", "hybrik", "compact_hmr")
    for path in modules():
        if path.stem not in networks:
            early = imports(path, top_level_only=True)
            assert not early & {f"posegen_ray.estimators.{name}" for name in networks}
            assert not {name.split(".")[0] for name in early} & {"torchvision", "timm"}
