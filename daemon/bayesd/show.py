"""What people and programs are shown: tables, JSON, YAML or bare values on stdout, talk on stderr.

A table is for people and may change; the other three are for programs and hold every field.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import click
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

FORMATS = ("table", "json", "yaml", "value")
PATIENCE_S = 1.0      # a bar that would be gone before anybody reads it is not shown


# What a terminal obeys, and what turns the order of letters round; a new line and a tab are left alone.
_ORDERS = {code: f"\\u{code:04x}" for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F),
                                               *range(0x2066, 0x206A))}


def harmless(text: str) -> str:
    """Text of others, such as a worker's error, so that no terminal takes it for orders: escape sequences can write
    into a title or a clipboard, and cover what was said before. The form is that of JSON."""
    return text if text.isprintable() else text.translate(_ORDERS)


def talk(text: str = "") -> None:
    """Words for the person at the terminal; never mixed with the answer."""
    click.echo(harmless(text), err=True)


def console(stream: IO[str]) -> Console:
    """A console that never folds or cuts a line which a program reads."""
    wide = None if stream.isatty() else 100_000
    return Console(file=stream, width=wide, highlight=False, soft_wrap=not stream.isatty())


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: which key, under which title; numbers stand to the right."""

    key: str
    title: str
    right: bool = False
    text: Callable[[Any], str] | None = None

    def of(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.key)
        return self.text(value) if self.text is not None and value is not None else cell(value)


def cell(value: Any) -> str:
    """A value in a table or a bare line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return params(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(each) for each in value)
    return harmless(str(value))


def params(values: Mapping[str, Any]) -> str:
    """A configuration in one line: C=3.1 kernel=poly."""
    return "  ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={cell(value)}"
                     for name, value in values.items())


def duration(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 02:03."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def eta(state: Mapping[str, Any]) -> str:
    """When a study ends, between what, and by which rule; of a daemon that does not say more, when."""
    ends, words = state.get("eta"), duration(state["eta_s"])
    if not ends:
        return words
    return f"{words} ({duration(ends['low_s'])} to {duration(ends['high_s'])}, by {ends['rule']})"


def cost(state: Mapping[str, Any]) -> str | None:
    """What a study cost, and is expected to cost until it ends; None where nobody told a cost."""
    said = state.get("cost")
    if not said or not said["spent"]:
        return None
    return cell(said["spent"]) + ("" if said["to_come"] is None else f", and {said['to_come']:.4g} to come")


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def rows(format: str, items: Sequence[Mapping[str, Any]], columns: Sequence[Column], empty: str = "") -> None:
    """A list of like things."""
    if format in ("json", "yaml"):
        _dump(format, list(items))
    elif format == "value":
        for item in items:
            click.echo(harmless("\t".join(column.of(item) for column in columns)))
    elif not items and empty:
        talk(empty)
    else:
        click.echo(table([[column.of(item) for column in columns] for item in items], columns))


def record(format: str, item: Mapping[str, Any], lines: Sequence[tuple[str, Any]], value: Sequence[Any]) -> None:
    """One thing: all of it for programs, `lines` of (label, text) for people, `value` for a shell variable."""
    if format in ("json", "yaml"):
        _dump(format, item)
    elif format == "value":
        click.echo("\t".join(cell(each) for each in value))
    else:
        width = max((len(label) for label, _ in lines), default=0)
        for label, text in lines:
            click.echo(f"{label:{width}}  {cell(text)}".rstrip())


def table(cells: Sequence[Sequence[str]], columns: Sequence[Column]) -> str:
    """Aligned text; with colour when somebody looks."""
    terminal = sys.stdout.isatty()
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold" if terminal else "",
                 show_edge=False)
    for column in columns:
        grid.add_column(column.title, justify="right" if column.right else "left", no_wrap=True,
                        overflow="ellipsis")      # "ignore" would ignore the justification, too
    for row in cells:
        grid.add_row(*map(harmless, row))
    out = console(sys.stdout)
    with out.capture() as capture:
        out.print(grid, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _dump(format: str, value: Any) -> None:
    if format == "json":
        click.echo(harmless(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))
    else:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
        if harmless(text) != text:
            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False)      # which has escapes of its own
        click.echo(text.rstrip())


@contextmanager
def patience(what: str) -> Iterator[None]:
    """A spinner on the terminal while something of unknown length lasts."""
    if not sys.stderr.isatty():
        yield
        return
    spinner = console(sys.stderr).status(what)
    timer = threading.Timer(PATIENCE_S, spinner.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        spinner.stop()


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal for work that lasts: call the result with how much is done in all."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TimeRemainingColumn(), console=console(sys.stderr), transient=True)
    task = bar.add_task(what, total=total, start=True)
    began, started = time.monotonic(), False

    def advance(done: int) -> None:
        nonlocal started
        if not started and time.monotonic() - began > PATIENCE_S:
            started = True
            bar.start()
        bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if started:
            bar.stop()
