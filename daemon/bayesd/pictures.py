"""Charts as SVG for a page that nobody serves: no scripts, no fonts, no colours of their own.

A picture is text with classes; the page that holds it colours them, for light and dark alike. Every
mark has a title, which a browser shows under the pointer, and may be a link.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bayesd.show import cell


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing in a chart, in the units of its axes."""

    x: float
    y: float
    kind: str
    title: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on a line; what is beyond is drawn at its end."""

    low: float
    high: float
    log: bool = False
    names: Mapping[float, str] | None = None
    """Places that have names in place of numbers: choices, moments."""

    def share(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        low, high, at = (math.log(max(v, 5e-324)) if self.log else v for v in (self.low, self.high, value))
        return 0.5 if high <= low else min(1.0, max(0.0, (at - low) / (high - low)))

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        if self.names is not None:
            return list(self.names.items())
        if self.log and self.high / self.low >= 10:
            low, high = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            each = max(1, math.ceil((high - low) / most))
            return [(10.0**k, f"1e{k}" if abs(k) > 3 else f"{10.0**k:g}") for k in range(low, high + 1, each)]
        span = self.high - self.low
        if not span > 0 or not math.isfinite(span):
            return [(self.low, cell(self.low))]
        rough = span / most
        unit = 10.0**math.floor(math.log10(rough))
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough * (1 - 1e-9))
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        first = math.ceil(self.low / step - 1e-9)
        return [((first + i) * step, f"{(first + i) * step:.6g}") for i in range(count)]


LEFT, RIGHT, TOP, BOTTOM = 74, 14, 10, 40
ROW = 20


def chart(marks: Iterable[Mark], x: Axis, y: Axis, x_label: str, y_label: str, *,
          line: Sequence[tuple[float, float]] = (), width: int = 760, height: int = 280, about: str = "") -> str:
    """Marks, and a line of steps under them."""
    across, down = width - LEFT - RIGHT, height - TOP - BOTTOM

    def place(at_x: float, at_y: float) -> tuple[float, float]:
        return round(LEFT + across * x.share(at_x), 1), round(TOP + down * (1 - y.share(at_y)), 1)
    out = [_open(width, height, about or f"{y_label} by {x_label}")]
    for value, name in y.ticks(max(2, down // 45)):
        _, at = place(x.low, value)
        out.append(f'<path class="rule" d="M{LEFT} {at}H{width - RIGHT}"/>'
                   f'<text class="tick" x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{escape(name)}</text>')
    for value, name in x.ticks(max(2, across // 90)):
        at, _ = place(value, y.low)
        out.append(f'<text class="tick" x="{at}" y="{height - BOTTOM + 17}" text-anchor="middle">{escape(name)}</text>')
    out.append(f'<text class="name" x="{LEFT + across / 2:g}" y="{height - 5}" text-anchor="middle">{escape(x_label)}'
               f'</text><text class="name" transform="translate(13 {TOP + down / 2:g}) rotate(-90)" '
               f'text-anchor="middle">{escape(y_label)}</text>')
    if line:
        steps = [place(*line[0]), *(place(*each) for each in line[1:])]
        path = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{a}V{b}" for a, b in steps[1:])
        out.append(f'<path class="line" d="{path}"/>')
    out += [_mark(*place(mark.x, mark.y), mark) for mark in marks]
    return "".join([*out, "</svg>"])


def _mark(at_x: float, at_y: float, mark: Mark) -> str:
    if mark.kind in ("fail", "voided"):
        shape = f'<path class="{mark.kind}" d="M{at_x - 4} {at_y - 4}l8 8m0 -8l-8 8">'
        end = "</path>"
    else:
        shape = f'<circle class="{mark.kind}" cx="{at_x}" cy="{at_y}" r="{6 if mark.kind == "best" else 3.5}">'
        end = "</circle>"
    return _linked(f"{shape}<title>{escape(mark.title)}</title>{end}", mark.link)


def _linked(text: str, link: str) -> str:
    return f'<a href="{escape(link)}">{text}</a>' if link else text


def _open(width: int, height: int, about: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">'


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in a row."""

    row: int
    begin: float
    end: float
    kind: str
    title: str
    link: str = ""


def rows(bars: Iterable[Bar], names: Sequence[str], x: Axis, *, moments: Sequence[tuple[float, str]] = (),
         width: int = 760, about: str = "") -> str:
    """Bars in rows over time, and moments as lines through all of them. A row without a name belongs to the
    one above."""
    left = min(200, 16 + 7 * max(map(len, names), default=0))
    height, across = ROW * len(names) + 34, width - left - RIGHT

    def place(value: float) -> float:
        return round(left + across * x.share(value), 1)
    out = [_open(width, height, about)]
    for i, name in enumerate(names):
        if name:
            out.append(f'<text class="tick" x="{left - 8}" y="{ROW * i + 17}" text-anchor="end">{escape(name[:26])}'
                       f'</text><path class="rule" d="M{left} {ROW * i + 3}H{width - RIGHT}"/>')
    for bar in bars:
        begin = place(bar.begin)
        wide = max(1.5, round(place(bar.end) - begin - 0.8, 1))
        shape = (f'<rect class="{bar.kind}" x="{begin}" y="{ROW * bar.row + 6}" width="{wide}" height="{ROW - 6}" '
                 f'rx="2"><title>{escape(bar.title)}</title></rect>')
        out.append(_linked(shape, bar.link))
    for value, title in moments:
        out.append(f'<path class="moment" d="M{place(value)} 2V{height - 26}"><title>{escape(title)}</title></path>')
    for value, name in x.ticks(7):
        out.append(f'<text class="tick" x="{place(value)}" y="{height - 8}" text-anchor="middle">{escape(name)}</text>')
    return "".join([*out, "</svg>"])
