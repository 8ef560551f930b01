"""Every setting, its type and its default; past this module nobody sees a DictConfig.

YAML under conf/ chooses, these dataclasses decide: a misspelt key or a wrong type fails while the
configuration is composed, and rules between fields are checked in `__post_init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.errors import ConfigError


def require(condition: bool, what: str, fix: str) -> None:
    """Raises ConfigError(what, fix) unless the condition holds."""
    if not condition:
        raise ConfigError(what, fix)


# --- body ---------------------------------------------------------------------------------------


@dataclass
class BodyConfig:
    """The parametric body (conf/body)."""

    name: str = "anny"  # anny | smpl
    smpl_folder: str = ""  # where SMPL_NEUTRAL.pkl or .npz lies (smpl only)
    gender: str = "neutral"  # neutral | male | female (smpl only)

    def __post_init__(self) -> None:
        require(
            self.name in ("anny", "smpl"),
            f"body.name={self.name!r} is not a body.",
            "Choose body=anny (free, default) or body=smpl.",
        )


# --- motion -------------------------------------------------------------------------------------

# --- subjects: capture, field, fit, renderer ----------------------------------------------------

# --- estimator: choice, crop, fine-tuning -------------------------------------------------------

# --- generation: generator, discriminator, feedback, validity -----------------------------------

# --- runtime ------------------------------------------------------------------------------------

# --- training, experiment, evaluation -----------------------------------------------------------
