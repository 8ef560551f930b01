from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = sorted((Path(__file__).parents[2] / "cluster").glob("*.yaml"))


def test_there_is_a_launcher_file():
    assert "local.yaml" in [file.name for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_launcher_file_is_valid_and_asks_for_a_token(file):
    config = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
