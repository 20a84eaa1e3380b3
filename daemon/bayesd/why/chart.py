"""Small charts of text: a line of braille dots, a band of shade, one point with a mark.

Shape alone carries the meaning, so they read the same in a log file, in a mail and without colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))      # by column and row of a cell
BAND, MARK = "░", "●"


@dataclass(slots=True)
class Canvas:
    """A grid of characters with 2 x 4 dots each; y grows upwards."""

    width: int
    height: int
    low: float
    high: float
    _dots: dict[tuple[int, int], int] = field(default_factory=dict)
    _shade: set[tuple[int, int]] = field(default_factory=set)
    _marks: dict[tuple[int, int], str] = field(default_factory=dict)

    def row(self, value: float) -> int:
        """The row of dots of a value, from the top."""
        rows = 4 * self.height
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return min(max(round((1 - share) * (rows - 1)), 0), rows - 1)

    def dot(self, x: int, y: int) -> None:
        """Set one dot, in dots from the left and from the top."""
        cell = (x // 2, y // 4)
        self._dots[cell] = self._dots.get(cell, 0) | _DOTS[x % 2][y % 4]

    def line(self, values: Sequence[float]) -> None:
        """A line through one value for each column of dots; None of them may be missing."""
        last: int | None = None
        for x, value in enumerate(values):
            if math.isnan(value):
                last = None
                continue
            y = self.row(value)
            for between in range(*(sorted((last, y)) if last is not None else (y, y))):
                self.dot(x, between)
            self.dot(x, y)
            last = y

    def band(self, low: Sequence[float], high: Sequence[float]) -> None:
        """Shade between two values, one pair for each column of characters."""
        for x, (bottom, top) in enumerate(zip(low, high, strict=True)):
            for y in range(self.row(top) // 4, self.row(bottom) // 4 + 1):
                self._shade.add((x, y))

    def mark(self, x: int, y: int, sign: str = MARK) -> None:
        """A sign over whatever is there, in dots."""
        self._marks[min(max(x // 2, 0), self.width - 1), y // 4] = sign

    def rows(self) -> list[str]:
        return ["".join(self._cell(x, y) for x in range(self.width)).rstrip() for y in range(self.height)]

    def _cell(self, x: int, y: int) -> str:
        sign = self._marks.get((x, y))
        if sign is not None:
            return sign
        dots = self._dots.get((x, y), 0)
        return chr(0x2800 + dots) if dots else BAND if (x, y) in self._shade else " "


def framed(canvas: Canvas, labels: tuple[str, str], below: Sequence[tuple[int, str]]) -> list[str]:
    """A canvas with its highest and lowest value at the left and words below, each at a column."""
    margin = max(map(len, labels))
    rows = canvas.rows()
    lines = []
    for i, row in enumerate(rows):
        label = labels[0] if i == 0 else labels[1] if i == len(rows) - 1 else ""
        lines.append(f"{label:>{margin}} {'┤' if label else '│'}{row}".rstrip())
    lines.append(f"{'':{margin}} └{'─' * canvas.width}")
    text = [" "] * (canvas.width + 1)
    for column, words in below:
        at = min(max(column, 0), max(0, canvas.width - len(words)))
        text[at:at + len(words)] = words
    lines.append(" " * (margin + 2) + "".join(text).rstrip())
    return lines


def best_so_far(values: Sequence[float | None], minimize: bool, at: int | None, *, width: int, height: int = 7,
                label: str, first: str, last: str) -> list[str]:
    """The best value so far, with a dot for every result and a mark at index `at`; [] when there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return []
    low, high = _range(known, minimize)
    canvas = Canvas(width, height, low, high)
    wide = 2 * width

    def column(i: int) -> int:
        return round(i * (wide - 1) / max(1, len(values) - 1))
    best: float = math.nan
    line: list[float] = []
    better = min if minimize else max
    for i, value in enumerate(values):
        if value is not None:
            best = value if math.isnan(best) else better(best, value)
            canvas.dot(column(i), canvas.row(value))
        line += [best] * (column(i + 1) - column(i) if i + 1 < len(values) else wide - column(i))
    canvas.line(line[:wide])
    below = [(0, first), (width, last)]
    if at is not None and 0 <= at < len(values):
        value = values[at]
        # A trial without a value stands on the bottom line.
        canvas.mark(column(at), canvas.row(value) if value is not None else 4 * height - 1,
                    MARK if value is not None else "×")
        centre = column(at) // 2 - len(label) // 2
        if len(first) < centre < width - len(last) - len(label):
            below.insert(1, (centre, label))
    return framed(canvas, (number(high), number(low)), below)


def _range(values: Sequence[float], minimize: bool) -> tuple[float, float]:
    """Room for the values that matter: a few diverged ones must not press all others into one line."""
    order = sorted(values, reverse=not minimize)
    best, worst = order[0], order[-1]
    usual = order[min(len(order) - 1, int(0.9 * len(order)))]
    middle = order[len(order) // 2]
    if abs(worst - best) > 10 * abs(middle - best) > 0:
        worst = usual if abs(usual - best) <= 10 * abs(middle - best) else best + 3 * (middle - best)
    low, high = min(best, worst), max(best, worst)
    if high <= low:
        pad = abs(high) * 0.05 or 1.0
        return low - pad, high + pad
    return low, high


def beyond(values: Sequence[float | None], minimize: bool) -> int:
    """How many results `best_so_far` draws at its edge, since they lie beyond it."""
    known = [value for value in values if value is not None]
    low, high = _range(known, minimize)
    return sum(not low <= value <= high for value in known)


def is_cut(mean: Sequence[float], low: Sequence[float], high: Sequence[float], here: float) -> bool:
    """Whether `band` cuts the band off somewhere."""
    bottom, top = _window(mean, low, high, here)
    return min(low) < bottom or max(high) > top


def band(values: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float], at: float,
         here: float, *, logarithmic: bool, width: int, height: int = 7, label: str) -> list[str]:
    """A mean with its band along one parameter, and the point: values in rising order, at least two."""
    lows, highs = _window(mean, low, high, here)
    if highs <= lows:
        pad = abs(highs) * 0.05 or 1.0
        lows, highs = lows - pad, highs + pad
    canvas = Canvas(width, height, lows, highs)
    places = [_place(value, values, logarithmic) for value in values]
    columns = [x / (width - 1) for x in range(width)]
    canvas.band([_between(x, places, low) for x in columns], [_between(x, places, high) for x in columns])
    canvas.line([_between(x / (2 * width - 1), places, mean) for x in range(2 * width)])
    x = round(_place(at, values, logarithmic) * (2 * width - 1))
    canvas.mark(x, canvas.row(here))
    first, last = number(values[0]), number(values[-1])
    below = [(0, first), (width, last)]
    centre = x // 2 - len(label) // 2
    if len(first) < centre < width - len(last) - len(label):
        below.insert(1, (centre, label))
    return framed(canvas, (number(highs), number(lows)), below)


def _window(mean: Sequence[float], low: Sequence[float], high: Sequence[float], here: float) -> tuple[float, float]:
    """What the mean does is to be seen: a band that is wide somewhere is cut off there."""
    bottom, top = min(*mean, here), max(*mean, here)
    near = sorted(b - a for a, b in zip(low, high, strict=True))[len(low) // 3]
    room = max(0.25 * (top - bottom), near)
    return max(bottom - room, min(low)), min(top + room, max(high))


def _place(value: float, values: Sequence[float], logarithmic: bool) -> float:
    """Where a value stands, from 0 to 1."""
    low, high = values[0], values[-1]
    if logarithmic and low > 0:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def _between(x: float, places: Sequence[float], heights: Sequence[float]) -> float:
    """Linear interpolation."""
    for i in range(1, len(places)):
        if x <= places[i]:
            width = places[i] - places[i - 1]
            share = (x - places[i - 1]) / width if width > 0 else 1.0
            return heights[i - 1] + share * (heights[i] - heights[i - 1])
    return heights[-1]


def number(value: float) -> str:
    return f"{value:.4g}"
