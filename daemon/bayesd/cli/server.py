"""`bayesd serve` and `bayesd config`: the daemon and its settings."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from bayesd import show
from bayesd.bus import BusError
from bayesd.cli.common import BUG, CONFIG, Trouble, Verb, format_option, need, verb
from bayesd.config import ENVIRONMENT, Config, load
from bayesd_schemas.address import shown


def register(top: click.Group) -> None:
    top.add_command(serve)
    top.add_command(config)


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """One flag for each setting, in the words of the settings themselves."""
    for name, setting in reversed(Config.model_fields.items()):
        flag = f"--{name.replace('_', '-')}"
        kinds = get_args(setting.annotation) or (setting.annotation,)
        text = f"{setting.description or 'How much to say'}"
        if setting.default not in (None, "", False):
            text += f"; default {setting.default}"
        if bool in kinds:
            option = click.option(f"{flag}/--no-{name.replace('_', '-')}", name, default=None, help=text)
        else:
            kind: Any = (click.Path(path_type=Path) if Path in kinds else int if int in kinds
                         else float if float in kinds else str)
            option = click.option(flag, name, type=kind, default=None, help=text)
        command = option(command)
    command = click.option("--config", "file", type=click.Path(path_type=Path),
                           help="Read this TOML file instead of /etc/bayesd/bayesd.toml.")(command)
    return command


def _flags(settings: dict[str, Any]) -> dict[str, Any]:
    """Flags that were given, as `config.load` takes them."""
    given = {name: value for name, value in settings.items() if value is not None}
    if "operators" in given:
        given["operators"] = [name for name in given["operators"].replace(",", " ").split() if name]
    return given


@click.command("serve", cls=Verb, example="bayesd serve\nbayesd serve --broker mqtts://broker.example "
               "--username bayesd --password-file /etc/bayesd/password\nbayesd serve --log tuning.db --read-only\n"
               "bayesd serve --accept-rollback 'the disk died, this is the backup of last night'")
@_settings
@click.option("--accept-rollback", metavar="WHY",
              help="Go on with a log that is behind, or apart from, a head that it signed. What is lost is given up; "
                   "that goes on record with this reason. For one start: leave it out afterwards.")
@click.option("--read-only", is_flag=True, help="Serve nothing: show what of the log verifies.")
def serve(file: Path | None, read_only: bool, accept_rollback: str | None, **settings: Any) -> None:
    """Run the daemon. Without --broker it brings its own, on this machine only.

    Each setting may also stand in the environment as BAYESD_NAME, or in the file.

    The daemon signs the head of its log now and then. When a worker, the broker or the heads file has a signed head
    that this log cannot have made, an old copy was put back or two daemons run on copies: it ends with 65.
    """
    _serve(file, read_only, accept_rollback, settings)


def _serve(file: Path | None, read_only: bool, accept_rollback: str | None, settings: dict[str, Any]) -> None:
    if accept_rollback is not None and not accept_rollback.strip():
        raise click.UsageError("--accept-rollback needs a reason, which goes on record: say what happened")
    daemon = need("bayesd.daemon")
    flags = _flags(settings)
    settings_now, found = load(flags, file)
    if read_only:
        from bayesd.cli import logs
        logs.verify_file(daemon.log_path(settings_now), "table")
        return
    daemon.set_up_logging(settings_now)
    if settings_now.broker is not None and "port" in flags:
        daemon.logger.warning("--port does nothing with a broker of yours (%s, from %s): leave one of the two out",
                              shown(settings_now.broker), found["broker"].said_by)

    def ready(service: Any, url: str) -> None:
        if sys.stderr.isatty():
            show.talk(f"\n  broker  {url}{'' if settings_now.broker else '  (embedded)'}\n"
                      f"  log     {daemon.log_path(settings_now)}\n"
                      "  next    bayesd study create FILE    (Ctrl-C ends the daemon)\n")

    try:
        asyncio.run(daemon.serve(settings_now, reload=lambda: load(flags, file)[0], on_ready=ready,
                                 accept_rollback=accept_rollback))
    except Exception as error:
        # A daemon dials for ever; what the bus raises is wrong in the settings.
        end = Trouble(str(error), CONFIG) if isinstance(error, BusError) else error
        if settings_now.log_format != "json":
            raise end from (None if end is error else error)
        from bayesd.cli import explain
        code, text = explain(end)
        daemon.logger.critical("%s", text, exc_info=error if code == BUG else None)
        raise click.exceptions.Exit(code) from error


@click.group()
def config() -> None:
    """Settings of the daemon."""


def _of_config(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--config", "file", type=click.Path(path_type=Path), help="The file to read.")(command)


@verb(config, "show", "bayesd config show --origin")
@_of_config
@click.option("--origin", is_flag=True, help="Also show who said so: a file, the environment, or the default.")
@format_option
def config_show(file: Path | None, origin: bool, format: str) -> None:
    """The settings that `bayesd serve` would use."""
    settings, found = load({}, file)
    rows = [{"setting": name, "value": _plain(name, getattr(settings, name)),
             **({"origin": found[name].said_by if name in found else "default"} if origin else {})}
            for name in Config.model_fields]
    columns = [show.Column("setting", "setting"), show.Column("value", "value")]
    show.rows(format, rows, [*columns, show.Column("origin", "origin")] if origin else columns)


def _plain(name: str, value: Any) -> Any:
    if name == "broker" and value is not None:
        return shown(value)        # a password has no place in it, but somebody may have put one there
    return str(value) if isinstance(value, Path) else value


@verb(config, "check", "bayesd config check --config bayesd.toml")
@_of_config
def config_check(file: Path | None) -> None:
    """Whether the settings make sense: files are there, the broker's address can be read."""
    settings, found = load({}, file)
    if settings.broker is not None:
        try:
            need("bayesd.daemon")._address(settings, settings.broker).check()
        except BusError as error:
            raise Trouble(str(error), CONFIG) from error
    if settings.listen is not None:
        need("bayesd.daemon").listening(settings)
    show.talk(f"{len(found)} settings given, all of them good"
              f" ({ENVIRONMENT}... in the environment, or the file, or the defaults)")
