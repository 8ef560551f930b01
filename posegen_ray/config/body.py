"""Settings of the body model (conf/body)."""

from __future__ import annotations

from dataclasses import dataclass

from posegen_ray.config.rules import require


@dataclass
class BodyConfig:
    """The parametric body (conf/body)."""

    name: str = "anny"  # anny | smpl
    smpl_folder: str = ""  # where SMPL_NEUTRAL.pkl (.npz, .safetensors) lies (smpl only)
    gender: str = "neutral"  # neutral | male | female (smpl only)

    def __post_init__(self) -> None:
        require(
            self.name in ("anny", "smpl"),
            f"body.name={self.name!r} is not a body.",
            "Choose body=anny (free, default) or body=smpl.",
        )
