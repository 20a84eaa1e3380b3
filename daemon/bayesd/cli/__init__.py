"""The command line: nouns, then verbs; the answer on stdout, talk on stderr.

`main` is the one place where an exception becomes words and an exit code. The modules beside this
one hold a noun each and import the daemon's parts only when a verb needs them, so the client verbs
work on a light install.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from bayesd import __version__, show
from bayesd.bus import BusError
from bayesd.call import Refusal
from bayesd.cli import (
    audit,
    backups,
    deploy,
    diff,
    hand,
    help,
    importance,
    logs,
    pack,
    probe,
    redact,
    server,
    studies,
    trials,
    watch,
    whatif,
    why,
    workers,
)
from bayesd.cli.common import BUG, CONFIG, NO, UNREACHABLE, USAGE, Trouble
from bayesd.config import ConfigError
from bayesd.files import BadFile

INTERRUPTED = 130      # what a shell makes of Ctrl-C


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bayesd")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def bayesd(debug: bool) -> None:
    """An asynchronous tuning daemon: an append-only log, suggestions over MQTT, a posterior rebuilt by replay.

    \b
    First steps:
      bayesd demo                                   see it work
      bayesd serve                                  start the daemon
      bayesd study create study.toml                declare what is searched
      bayesd worker run --study S -- ./train {lr}   make any program a worker
      bayesd watch S                                look on
      bayesd why S                                  why it goes on or not, and why its winner won

    \b
    Exit codes:
      0 done  1 the answer is no  2 usage  3 broker or daemon not reachable
      65 damaged or rolled-back log  74 I/O error  75 another writer  76 fenced by a newer daemon  78 bad configuration
    """


for _module in (server, probe, studies, pack, trials, workers, hand, watch, why, logs, backups, audit, diff, redact,
                whatif, importance, deploy, help):
    _module.register(bayesd)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with the exit code of the contract."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command; what it raises becomes words and an exit code."""
    stdout = sys.stdout
    try:
        code = bayesd.main(list(arguments), prog_name="bayesd", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_has_enough()
    except SystemExit:
        # click makes a broken pipe an exit with 1, which is our "no"; its mark is that it wraps the streams.
        if sys.stdout is stdout:
            raise
        sys.stdout = stdout
        return _reader_has_enough()
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        code, text = explain(error)
        show.talk(f"error: {text}")
        return code


def _usage(error: click.ClickException) -> int:
    """What was typed wrongly, and where to read on. A noun alone shows its verbs instead."""
    context = getattr(error, "ctx", None)
    if context is None or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        show.talk(f"error: {error.format_message()}\ntry: {context.command_path} --help")
    return error.exit_code


def _reader_has_enough() -> int:
    """The reader, such as head, is gone. Python would complain once more when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def explain(error: BaseException) -> tuple[int, str]:
    """(exit code, words) of what went wrong."""
    if isinstance(error, BaseExceptionGroup):
        # A task group wraps what its tasks raise; the first that we can explain is the reason.
        found = [explain(each) for each in error.exceptions]
        return next((each for each in found if each[0] != BUG), found[0])
    if isinstance(error, Refusal):
        return (USAGE if error.code in ("bad-field", "bad-json") else NO), str(error)
    if isinstance(error, BusError):
        return UNREACHABLE, str(error)
    if isinstance(error, BadFile):
        return USAGE, str(error)
    if (isinstance(error, (Trouble, ConfigError)) or _is_ours(error, "bayesd.logfile", "LogError")
            or _is_ours(error, "bayesd.web", "CannotListen")):
        return getattr(error, "exit_code", NO), str(error)
    if _is_ours(error, "bayesd.broker", "BrokerError"):
        return UNREACHABLE, str(error)
    if _is_ours(error, "bayesd.study.fold", "UnknownEvent"):
        return CONFIG, str(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return USAGE, "a file name that was given is too long for this system: name a file that is there"
    return BUG, f"{type(error).__name__}: {error}. This is a bug: please report it with the output of --debug"


def _is_ours(error: BaseException, module: str, name: str) -> bool:
    """Whether it is one of the daemon's errors, whose modules a light install cannot import."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


__all__ = ["bayesd", "explain", "main", "run"]
