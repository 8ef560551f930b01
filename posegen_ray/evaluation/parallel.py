"""Parallel coordinates: one axis a setting, one line a trial, as SVG text.

The style sheet colours it; every value that it shows is also in the page's table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 1060, 330  # SVG user units, about CSS pixels on a wide screen
_SIDE, _TOP, _BOTTOM = 62, 46, 24


@dataclass(frozen=True)
class Axis:
    """A vertical axis: from low to high (on a logarithmic scale where `log`), or of choices."""

    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def height(self, value: Any) -> float:
        """Where the value lies: 0 at the bottom, 1 at the top."""
        if self.choices:
            return self.choices.index(value) / max(len(self.choices) - 1, 1)
        low, high, at = (
            math.log(v) if self.log else float(v) for v in (self.low, self.high, value)
        )
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """Heights and their labels."""
        if self.choices:
            return [(self.height(choice), str(choice)) for choice in self.choices]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [
            (height, f"{v:.3g}") for height, v in ((0, self.low), (0.5, middle), (1, self.high))
        ]


@dataclass(frozen=True)
class Line:
    """A trial: a value on each axis (None ends it before), and a CSS class."""

    label: str
    style: str
    values: Sequence[Any]
    heat: float = 0.0  # 0: the best, 1: the worst


def parallel_coordinates(axes: Sequence[Axis], lines: Sequence[Line]) -> str:
    """The chart; lines are drawn in the given order, so the most important one comes last."""
    step = (_WIDTH - 2 * _SIDE) / max(len(axes) - 1, 1)
    across = [_SIDE + number * step for number in range(len(axes))]

    def down(height: float) -> float:
        return _TOP + (1 - height) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for line in lines:
        points = " ".join(
            f"{x:.1f},{down(axis.height(value)):.1f}"
            for x, axis, value in zip(across, axes, line.values, strict=True)
            if value is not None
        )
        parts.append(
            f'<polyline class="trial {line.style}" style="--heat:{100 * line.heat:.0f}%" '
            f'points="{points}"><title>{escape(line.label)}</title></polyline>'
        )
    for number, (x, axis) in enumerate(zip(across, axes, strict=True)):
        parts.append(
            f'<line class="axis-line" x1="{x:.1f}" x2="{x:.1f}" y1="{down(1)}" y2="{down(0)}"/>'
        )
        # two rows, so that neighbours' names do not run into each other
        y = 14 if number % 2 == 0 else 30
        parts.append(
            f'<text class="axis-name" x="{x:.1f}" y="{y}" text-anchor="middle">'
            f"{escape(axis.label)}</text>"
        )
        last = number == len(axes) - 1
        for height, text in axis.marks():
            offset, anchor = (7, "start") if last else (-7, "end")
            parts.append(
                f'<text class="axis-mark" x="{x + offset:.1f}" y="{down(height) + 4:.1f}" '
                f'text-anchor="{anchor}">{escape(text)}</text>'
            )
    names = ", ".join(axis.label for axis in axes)
    return (
        f'<div class="scroll"><svg class="parallel" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Parallel coordinates of {len(lines)} trials over {escape(names)}">'
        f"{''.join(parts)}</svg></div>"
    )
