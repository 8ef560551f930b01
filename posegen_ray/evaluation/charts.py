"""Charts as HTML and SVG text; the page's style sheet colours them, in light and in dark.

Rows of markers are HTML, so their text keeps its size on a phone; curves are small SVGs. Every
value that a chart shows is also in its text, and arms differ in shape as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from posegen_ray.evaluation.protocol import Interval

Floats = npt.NDArray[np.float64]

_WIDTH, _HEIGHT = 340, 190  # SVG user units of a curve chart; about CSS pixels on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 24
_MOST_POINTS = 240
_FEW = 5


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `style` is a CSS class such as `arm-posegen`."""

    label: str
    style: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class IntervalRow:
    """One marker with its interval."""

    label: str
    style: str
    interval: Interval
    text: str


@dataclass(frozen=True)
class PairRow:
    """Two values of one thing, before and after."""

    label: str
    note: str
    before: float
    after: float


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers inside [low, high], about so many."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def curve_chart(title: str, curves: Sequence[Curve]) -> str:
    """Lines over steps. Points that are not finite are left out, long curves averaged in bins."""
    thinned = [(curve, *_thinned(curve)) for curve in curves]
    thinned = [item for item in thinned if len(item[1])]
    if not thinned:
        return ""
    x_low, x_high = _range([x for _, x, _ in thinned])
    y_low, y_high = _range([y for _, _, y in thinned])
    margin = 0.06 * (y_high - y_low)
    y_low, y_high = y_low - margin, y_high + margin

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in ticks(y_low, y_high):
        y = down(value)
        parts.append(
            f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for value in ticks(x_low, x_high, 3):
        x, anchor = across(value), "middle"
        if x > _WIDTH - 24:
            x, anchor = float(_WIDTH - _RIGHT), "end"
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 7}" text-anchor="{anchor}">{_number(value)}</text>'
        )
    for curve, xs, ys in thinned:
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="curve {curve.style}" points="{points}"/>')
        if len(xs) == 1:
            parts.append(
                f'<circle class="dot {curve.style}" r="3" cx="{across(xs[0]):.1f}"'
                f' cy="{down(ys[0]):.1f}"/>'
            )
    last = "; ".join(f"{curve.label} ends at {_number(float(ys[-1]))}" for curve, _, ys in thinned)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(title)}: {escape(last)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def interval_rows(rows: Sequence[IntervalRow], left: str, right: str) -> str:
    """Estimates with whiskers about a zero line; `left` and `right` say what the sides mean."""
    ends = [v for r in rows for v in (*astuple(r.interval), 0.0) if math.isfinite(v)]
    span = (max(ends) - min(ends)) or 1.0
    # room on both sides of zero, so that both sides' names make sense
    low, high = min(*ends, -0.2 * span) - 0.05 * span, max(*ends, 0.2 * span) + 0.05 * span

    def at(value: float) -> float:
        share = 100 * (value - low) / (high - low)
        return float(min(max(share, 0.0), 100.0))

    body = []
    for row in rows:
        start, end = at(row.interval.low), at(row.interval.high)
        body.append(
            f'<div class="row"><span class="row-label">{_swatch(row.style)}{escape(row.label)}'
            f'</span><span class="track"><i class="zero" {_placed(at(0))}></i>'
            f'<i class="whisker {row.style}" {_placed(start, end)}></i>'
            f'<i class="marker {row.style}" {_placed(at(row.interval.mean))}></i></span>'
            f'<span class="row-value">{escape(row.text)}</span></div>'
        )
    return (
        f'<div class="rows intervals">{"".join(body)}<div class="row axis"><span></span>'
        f'<span class="sides"><span>{escape(left)}</span><span>{escape(right)}</span></span>'
        "<span></span></div></div>"
    )


def pair_rows(rows: Sequence[PairRow], unit: str, before_style: str, after_style: str) -> str:
    """Before and after of many things on one axis that starts at zero."""
    top = max((max(row.before, row.after) for row in rows), default=1.0) * 1.04 or 1.0
    body = []
    for row in rows:
        first, second = (100 * value / top for value in (row.before, row.after))
        left, right = min(first, second), max(first, second)
        trend = "better" if row.after < row.before else "worse"
        body.append(
            f'<div class="row"><span class="row-label">{escape(row.label)}'
            f'<small>{escape(row.note)}</small></span><span class="track">'
            f'<i class="stem {trend}" {_placed(left, right)}></i>'
            f'<i class="marker {before_style}" {_placed(first)}></i>'
            f'<i class="marker {after_style}" {_placed(second)}></i></span>'
            f'<span class="row-value">{row.before:.0f} → {row.after:.0f} {escape(unit)}</span>'
            "</div>"
        )
    return f'<div class="rows pairs">{"".join(body)}</div>'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars from zero: label, value, and the value as text."""
    top = max((value for _, value, _ in rows), default=1.0) or 1.0
    body = [
        f'<div class="row"><span class="row-label">{escape(label)}</span>'
        f'<span class="track"><i class="bar" {_placed(0, 100 * value / top)}></i></span>'
        f'<span class="row-value">{escape(text)}</span></div>'
        for label, value, text in rows
    ]
    return f'<div class="rows bars">{"".join(body)}</div>'


def heat_map(
    corner: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    counts: Sequence[Sequence[int]],
    diverging: bool = False,
) -> str:
    """A table whose cells are shaded by value: from the lowest to the highest, or both ways from 0.

    None leaves a cell empty; cells of fewer than five samples are pale.
    """
    known = [value for line in values for value in line if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    largest = max(abs(low), abs(high)) or 1.0

    def shade(value: float) -> tuple[str, float]:
        if diverging:
            side = "better" if value < 0 else "worse"
            return f"heat {side}", 70 * abs(value) / largest
        return "heat level", 8 + 62 * (value - low) / ((high - low) or 1.0)

    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = []
    for name, line, sizes in zip(rows, values, counts, strict=True):
        cells = []
        for value, size in zip(line, sizes, strict=True):
            if value is None:
                cells.append('<td class="none" title="no samples">·</td>')
                continue
            style, percent = shade(value)
            if size < _FEW:
                style, percent = f"{style} few", 0.4 * percent
            text = f"{value:+.0f}".replace("-", "−") if diverging else f"{value:.0f}"
            cells.append(
                f'<td class="{style}" style="--heat:{percent:.0f}%">{text}'
                f"<small>n {size}</small></td>"
            )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="heat-map"><thead><tr><th>{escape(corner)}</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Label and style of each series."""
    items = "".join(f"<span>{_swatch(style)}{escape(label)}</span>" for label, style in entries)
    return f'<p class="legend">{items}</p>'


def _placed(left: float, right: float | None = None) -> str:
    """The style attribute of a marker at `left` percent, or of a bar up to `right` percent."""
    width = "" if right is None else f";width:{right - left:.2f}%"
    return f'style="left:{left:.2f}%{width}"'


def _swatch(style: str) -> str:
    return f'<i class="marker swatch {style}"></i>'


def _thinned(curve: Curve) -> tuple[Floats, Floats]:
    keep = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = curve.x[keep], curve.y[keep]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) <= _MOST_POINTS:
        return x, y
    bins = np.array_split(np.arange(len(x)), _MOST_POINTS)
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])


def _range(columns: Sequence[Floats]) -> tuple[float, float]:
    joined = np.concatenate(list(columns))
    low, high = float(joined.min()), float(joined.max())
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low, high


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:,.0f}"
