"""Exceptions a user may meet. Each says what is wrong, where, and how to fix it.

All of them pickle, so they cross Ray's process boundaries unchanged (tests/test_errors.py).
"""

from __future__ import annotations


class PosegenError(Exception):
    """Base class: `posegen` prints it as one clear line instead of a traceback.

    Args:
        what: what is wrong and where, in one sentence.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} {self.fix}".strip()


class ConfigError(PosegenError, ValueError):
    """A configuration value is unknown, of the wrong type, or contradicts another one."""


class AssetError(PosegenError):
    """A third-party file is missing, corrupt, or could not be fetched."""


class DataError(PosegenError, ValueError):
    """An input file (motion capture, capture folder, data set) cannot be used."""


class SubjectError(PosegenError):
    """A subject is missing, corrupt, or made for another body."""


class CheckpointError(PosegenError):
    """A checkpoint is missing, truncated, or belongs to another configuration."""


class ResourceError(PosegenError):
    """The machine or cluster lacks what the plan needs (CPUs, GPUs, memory, disk)."""


class RenderError(PosegenError):
    """A render request is invalid or its server failed for good."""


class TrainingError(PosegenError):
    """Training cannot go on (for example, many non-finite steps in a row)."""
