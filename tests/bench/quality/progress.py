"""How far the work is, on stderr: one line that is rewritten, or plain lines where nobody watches."""

import shutil
import sys
import time
from typing import TextIO

BAR = 24    # characters


class Progress:
    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.stream = stream or sys.stderr

    def now(self, words: str) -> None:
        """What is being done. Only for who watches: a plain line tells what is done."""
        if self.stream.isatty():
            self._line(words)

    def step(self, words: str) -> None:
        """One more is done."""
        self.done += 1
        if self.stream.isatty():
            self._line(words)
        else:
            print(f"{self.done}/{self.total} {words}", file=self.stream, flush=True)

    def say(self, words: str) -> None:
        """A line that stays."""
        print(("\r\x1b[K" if self.stream.isatty() else "") + words, file=self.stream, flush=True)

    def close(self) -> None:
        if self.stream.isatty():
            print("\r\x1b[K", end="", file=self.stream, flush=True)

    def _line(self, words: str) -> None:
        spent = time.monotonic() - self.began
        left = f"{clock(spent / self.done * (self.total - self.done))} left" if self.done else "..."
        full = BAR * self.done // max(self.total, 1)
        line = f"[{'#' * full}{'.' * (BAR - full)}] {self.done}/{self.total} {left}  {words}"
        width = shutil.get_terminal_size().columns - 1     # a line that wraps cannot be rewritten
        print(f"\r\x1b[K{line[:width]}", end="", file=self.stream, flush=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
