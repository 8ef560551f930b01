"""How a setting is refused."""

from __future__ import annotations

from posegen_ray.errors import ConfigError


def require(condition: bool, what: str, fix: str) -> None:
    """Raises ConfigError(what, fix) unless the condition holds."""
    if not condition:
        raise ConfigError(what, fix)
