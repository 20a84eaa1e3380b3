"""What all commands share: how a verb is declared, how the broker is found, how a verb ends.

A verb ends with 0 when it is done, and otherwise by raising: `main` turns what was raised into one
or two lines on stderr and the exit code of the contract.
"""

import asyncio
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from bayesd import call, show
from bayesd.bus import BusError
from bayesd.show import FORMATS

NO, USAGE, UNREACHABLE, CONFIG = 1, 2, 3, 78      # 65, 74, 75 and 76 are said by errors of the log
BUG = 70      # EX_SOFTWARE: nobody but us can mend it

Command = TypeVar("Command", bound=Callable[..., Any])


class Trouble(Exception):
    """The verb cannot be done; the text is for the person who typed it."""

    def __init__(self, text: str, exit_code: int = NO) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Verb(click.Command):
    """A command whose help ends with an example to copy."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = self.example.splitlines()
        with formatter.section("Example" if len(lines) < 2 else "Examples"):
            for line in lines:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def study_argument(name: str = "study", **more: Any) -> Callable[[Command], Command]:
    """STUDY, which the shell completes from the running daemon."""
    return click.argument(name, metavar="STUDY", shell_complete=_study_names, **more)


def _study_names(context: click.Context, parameter: click.Parameter, beginning: str) -> list[str]:
    """Names of studies, if a daemon answers at once: a shell that waits is worse than one that knows nothing."""
    try:
        reach = call.find(broker=context.params.get("broker"), timeout_s=1.0)
        result = asyncio.run(call.once(reach, "study.list"))
    except (BusError, ValueError, call.Refusal):
        return []
    return [row["study"] for row in result["studies"] if row["study"].startswith(beginning)]


def verb(group: click.Group, name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a verb of a noun."""
    return group.command(name, cls=Verb, example=example)


def format_option(command: Command) -> Command:
    """-f on every read."""
    return click.option("-f", "--format", "format", type=click.Choice(FORMATS), default="table", show_default=True,
                        help="table for people; json, yaml and value for programs.")(command)


def log_option(command: Command) -> Command:
    """--log on reads that need no daemon, and --at, since a log knows every moment."""
    return click.option("--log", "log", type=click.Path(path_type=Path),
                        help="Read this log file instead of asking a daemon.")(at_option(command))


def at_option(command: Command) -> Command:
    """--at: a moment of the past."""
    return click.option("--at", metavar="SEQ|TIME", help="As it was at that moment; a time without a zone is UTC.")(
        command)


def at_args(at: str | None) -> dict[str, str]:
    """What tells a daemon which moment is meant."""
    return {} if at is None else {"at": at}


def say_moment(at: Mapping[str, Any] | None) -> None:
    """Which moment a list is of: its rows do not say it."""
    if at is not None:
        show.talk(f"as of event {at['seq']}, {at['time']}")


_OPTIONS = (
    click.option("--broker", envvar="BAYESD_BROKER", show_envvar=True, metavar="URL",
                 help="mqtt://[user@]host[:port] or mqtts://...; default: the daemon on this machine."),
    click.option("--root", envvar="BAYESD_ROOT", show_envvar=True, metavar="PREFIX", help="The topic prefix."),
    click.option("--client", envvar="BAYESD_CLIENT", show_envvar=True, metavar="NAME",
                 help="Our name; default: the broker user, else a random one."),
    click.option("--username", envvar="BAYESD_USERNAME", show_envvar=True, help="User at the broker."),
    click.option("--password-file", envvar="BAYESD_PASSWORD_FILE", show_envvar=True, type=click.Path(path_type=Path)),
    click.option("--ca-file", envvar="BAYESD_CA_FILE", show_envvar=True, type=click.Path(path_type=Path),
                 help="Certificates to trust (mqtts)."),
    click.option("--cert-file", envvar="BAYESD_CERT_FILE", show_envvar=True, type=click.Path(path_type=Path),
                 help="Our client certificate (mqtts)."),
    click.option("--key-file", envvar="BAYESD_KEY_FILE", show_envvar=True, type=click.Path(path_type=Path),
                 help="The private key of --cert-file (mqtts). Not a key of a log."),
    click.option("--sign-key", envvar="BAYESD_SIGN_KEY_FILE", show_envvar=True, type=click.Path(path_type=Path),
                 help="Sign with the key in this file, and believe only what it signed."),
    click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=call.TIMEOUT_S, show_default=True,
                 help="Seconds to wait for the daemon."),
)
_NAMES = ("broker", "root", "client", "username", "password_file", "ca_file", "cert_file", "key_file", "sign_key",
          "timeout_s")


def reaching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb its way to the daemon as `reach`: a function, since with --log none is needed."""
    @functools.wraps(command)
    def with_reach(**kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _NAMES}
        return command(reach=functools.partial(find, **given), **kwargs)
    for option in reversed(_OPTIONS):
        with_reach = option(with_reach)
    return with_reach


def find(**given: Any) -> call.Reach:
    """Where the daemon is. What is wrong here is wrong in the flags or in their variables."""
    try:
        return call.find(**given)
    except (BusError, ValueError) as error:
        raise Trouble(str(error), USAGE) from error


Reaching = Callable[[], call.Reach]


def need(module: str) -> Any:
    """Import a part of the daemon, which a light install lacks."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("bayesd", "bayesd_schemas", "bayesd_client"):
            raise
        raise Trouble(f"this needs the daemon, and {error.name} is not installed: pip install 'bayesd[daemon]'",
                      USAGE) from error
