"""Settings of the motion capture and what each clip is for."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require


@dataclass
class MotionConfig:
    """Motion capture and what each clip is for."""

    # clips of poses that everybody trains on: first half in time; the second half tests
    source: list[str] = field(
        default_factory=lambda: ["walk", "run", "jump", "dance_a", "punch", "kick", "spin"]
    )
    validation: list[str] = field(default_factory=lambda: ["spinkick", "getup_faceup"])
    # never seen in training
    ood: list[str] = field(
        default_factory=lambda: [
            "cartwheel",
            "backflip",
            "crawl",
            "roll",
            "getup_facedown",
            "dance_b",
        ]
    )
    # own files (AMASS npz, BVH, DeepMimic), named by file; source clips, unless listed above
    paths: list[str] = field(default_factory=list)
    frames_per_second: float = 30.0
    gap_seconds: float = 0.1  # left out between a source clip's halves and at its end

    def __post_init__(self) -> None:
        lists = {"source": self.source, "validation": self.validation, "ood": self.ood}
        owner: dict[str, str] = {}
        for name, clips in lists.items():
            require(bool(clips), f"motion.{name} is empty.", "Name at least one clip.")
            for clip in clips:
                require(
                    clip not in owner,
                    f"Clip {clip!r} is in motion.{name} and in motion.{owner.get(clip)}.",
                    "Use each clip for one purpose only.",
                )
                owner[clip] = name
        require(
            0 < self.frames_per_second <= 240,
            f"motion.frames_per_second={self.frames_per_second} is out of range.",
            "Choose a rate between 0 and 240.",
        )
        require(
            self.gap_seconds >= 0,
            f"motion.gap_seconds={self.gap_seconds} is negative.",
            "Choose 0 or more.",
        )
