"""`bayesd doctor`, `bayesd demo` and `bayesd completion`: for the first minute, and for bad ones."""

import asyncio
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from bayesd import show
from bayesd.cli.common import NO, USAGE, Reaching, Trouble, Verb, find, format_option, need, reaching

_RC = {"bash": ("~/.bashrc", 'eval "$(bayesd completion bash)"'),
       "zsh": ("~/.zshrc", 'eval "$(bayesd completion zsh)"'),
       "fish": ("~/.config/fish/config.fish", "bayesd completion fish | source")}


def register(top: click.Group) -> None:
    top.add_command(doctor)
    top.add_command(demo)
    top.add_command(completion)


@click.command("completion", cls=Verb, example="eval \"$(bayesd completion bash)\"")
@click.argument("shell", type=click.Choice(list(_RC)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes the shell complete words."""
    found = get_completion_class(shell)
    if found is None:
        raise Trouble(f"this click knows no completion for {shell}", USAGE)
    file, line = _RC[shell]
    click.echo(found(context.find_root().command, {}, "bayesd", "_BAYESD_COMPLETE").source())
    show.talk(f"to have it always, put this line into {file}:\n  {line}")


@click.command("doctor", cls=Verb, example="bayesd doctor\n"
               "bayesd doctor --broker mqtts://broker.example --ca-file ca.crt --cert-file alice.crt "
               "--key-file alice.key --worker-cert-file w1.crt --worker-key-file w1.key\n"
               "bayesd doctor --username alice --password-file alice.password --worker-user w1 "
               "--worker-password-file w1.password -f json")
@click.option("--log", type=click.Path(path_type=Path), help="The log file to look at; default where serve puts it.")
@click.option("--worker-user", metavar="NAME", help="A worker's login, to see as well what a worker may do.")
@click.option("--worker-password-file", type=click.Path(path_type=Path))
@click.option("--worker-cert-file", type=click.Path(path_type=Path))
@click.option("--worker-key-file", type=click.Path(path_type=Path))
@click.option("--broker-config", type=click.Path(path_type=Path),
              help="mosquitto's settings, for what cannot be seen from outside: /etc/mosquitto/mosquitto.conf.")
@reaching
@format_option
def doctor(log: Path | None, worker_user: str | None, worker_password_file: Path | None, worker_cert_file: Path | None,
           worker_key_file: Path | None, broker_config: Path | None, reach: Reaching, format: str) -> None:
    """Find out what is wrong, and what to do.

    Looks at the broker, the way to the daemon and back through its access list, certificates, clock, disk and
    versions, and changes nothing. Takes a few seconds, and sends the broker about 2,300 small messages in one of them.
    Ends with 1 if something is wrong.
    """
    from bayesd.doctor import examine
    here = reach()
    worker = None
    if worker_user is not None or worker_cert_file is not None:
        worker = find(broker=here.address.url, root=here.root, username=worker_user, password_file=worker_password_file,
                      ca_file=here.address.ca_file, cert_file=worker_cert_file, key_file=worker_key_file,
                      timeout_s=here.timeout_s)
    findings = asyncio.run(examine(here, log, worker=worker, broker_settings=broker_config))
    marks = {"ok": "ok", "warn": "look", "bad": "BAD"}
    rows = [{"check": each.check, "state": each.state, "finding": each.finding, "advice": each.advice}
            for each in findings]
    shown: list[dict[str, Any]] = [{**row, "mark": marks[str(row["state"])], "words": _sentence(row)} for row in rows]
    show.rows(format, rows if format in ("json", "yaml") else shown,
              [show.Column("mark", ""), show.Column("check", "CHECK"), show.Column("words", "FINDING")])
    bad = sum(row["state"] == "bad" for row in rows)
    if bad:
        raise Trouble(f"{bad} of {len(rows)} checks are bad", NO)


def _sentence(row: dict[str, Any]) -> str:
    return f"{row['finding'].rstrip('.')}; {row['advice']}" if row["advice"] else str(row["finding"])


@click.command("demo", cls=Verb, example="bayesd demo\nbayesd demo --dir /tmp/first-minute --trials 12")
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path("bayesd-demo"), show_default=True,
              help="Where its files go; an older demo there is moved aside.")
@click.option("--trials", type=click.IntRange(8, 500), default=24, show_default=True)
@click.option("--port", type=click.IntRange(1024, 65535), default=None, help="Port of the broker; default a free one.")
@click.option("--broker-kind", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True,
              help="Which embedded broker.")
def demo(folder: Path, trials: int, port: int | None, broker_kind: str) -> None:
    """See it work, in a minute.

    A real model is tuned by three workers; one of them and the daemon are killed on the way. Ends with 0 only
    if nothing was lost, nothing counted twice, and the log proves it.
    """
    need("bayesd.daemon")
    need("sklearn")
    from bayesd import demo as show_it
    raise click.exceptions.Exit(show_it.run(folder, trials=trials, port=port, broker_kind=broker_kind))
