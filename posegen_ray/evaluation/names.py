"""What arms and test sets are called, and described as, in tables and on pages."""

from __future__ import annotations

_ARMS = {  # name -> label, what it is fine-tuned on
    "baseline": ("Baseline", "the pre-trained estimator that all arms start from, not fine-tuned"),
    "source_adapted": ("Source-adapted", "fine-tuned on images of the source poses and cameras"),
    "random": ("Random", "half source, half broad random poses and cameras"),
    "random_double": ("Random, twice", "as random, with twice as many random images"),
    "random_more": (
        "More random",
        "as random, with as many random images as PoseGen renders in all",
    ),
    "real_poses": ("Real poses", "half source, half real poses from broad random cameras"),
    "hard_mined": (
        "Hard-mined",
        "half source, half those of many random images that PoseGen's feedback pays best",
    ),
    "no_feedback": ("No feedback", "as PoseGen, its generator trained for realism alone"),
    "posegen": (
        "PoseGen",
        "half source, the rest from the trained generator (a share of it random)",
    ),
}
_SETS = {  # name -> label, what it shows
    "source": ("Source", "the training clips' other halves, eye level; people and backgrounds new"),
    "wild": ("Wild", "the same frames from extreme views"),
    "view": ("View", "the same frames from near and tilted cameras"),
    "person": ("Person", "the training clips' other halves, eye level; MakeHuman's people"),
    "motion": ("Motion", "clips never trained on, eye level"),
    "ood": ("OOD", "clips never trained on, eye level and extreme views"),
    "val_source": ("Val. source", "source clips, eye level; the validation people"),
    "validation": ("Validation", "the validation clips and people, eye level and extreme views"),
    "all": ("All", "all sets"),
}


def arm_label(arm: str) -> str:
    """An arm's name in a table; a variant's is made from its own."""
    return _ARMS[arm][0] if arm in _ARMS else arm.replace("_", " ").capitalize()


def arm_in_text(arm: str) -> str:
    """An arm's name inside a sentence."""
    return arm_label(arm) if arm == "posegen" else arm_label(arm).lower()


def is_variant(arm: str) -> bool:
    """Whether it is PoseGen with other settings, and no control."""
    return arm not in _ARMS


def arm_note(arm: str) -> str:
    """What an arm is fine-tuned on."""
    return _ARMS[arm][1] if arm in _ARMS else "PoseGen with other settings (see the run's config)"


def arm_style(arm: str) -> str:
    """Its class in the report's style sheet."""
    known = ("baseline", "source_adapted", "random", "posegen")
    return f"arm-{arm}" if arm in known else "arm-other"


def set_label(name: str) -> str:
    """A test set's name in a table."""
    return _SETS[name][0]


def set_note(name: str) -> str:
    """What a test set shows."""
    return _SETS[name][1]
