"""What the user's own code holds, by name (module:name)."""

from __future__ import annotations

import importlib
from typing import Any

from posegen_ray.errors import ConfigError


def import_target(target: str, example: str) -> Any:
    """What `target` (module:name) names; its module is imported.

    Args:
        example: such a name, for the error message.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, name = target.partition(":")
    if not (module and name):
        raise ConfigError(
            f"estimator.target={target!r} is not of the form module:name.",
            f"Write for example estimator.target=my_network:{example}.",
        )
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"estimator.target={target!r} cannot be imported ({error}).",
            "Put the module's folder on PYTHONPATH, on every machine that works for the run.",
        ) from error
