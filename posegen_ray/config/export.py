"""Settings of generated sets."""

from __future__ import annotations

from dataclasses import dataclass

from posegen_ray.config.rules import require

EXPORT_FORMATS = ("folder", "parquet", "webdataset", "spin", "bedlam")


@dataclass
class ExportConfig:
    """How sets of labelled images are written."""

    image: str = "png"  # png (lossless) | jpg (quality 95)
    images_per_shard: int = 256  # the unit of work, of seeding, and of what an interruption costs

    def __post_init__(self) -> None:
        require(
            self.image in ("png", "jpg"),
            f"export.image={self.image!r} is not a kind of picture.",
            "Choose png (lossless) or jpg (a third of the size).",
        )
        require(
            self.images_per_shard >= 1,
            f"export.images_per_shard={self.images_per_shard} must be at least 1.",
            "Use a few hundred; thousands for sets of a million images.",
        )
