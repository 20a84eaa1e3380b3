"""`bayesd health` and `bayesd metrics`: how the daemon is, for probes and for Prometheus, without a port."""

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import Client
from bayesd.cli.common import NO, Reaching, Trouble, Verb, format_option, reaching
from bayesd.config import read_runtime
from bayesd.durable import put_in_place
from bayesd.health import of_note


def register(top: click.Group) -> None:
    top.add_command(health)
    top.add_command(metrics)


@click.command("health", cls=Verb, example="bayesd health\nbayesd health --ready -f json\n"
               "HEALTHCHECK CMD [\"bayesd\", \"health\"]     # in a Dockerfile")
@click.option("--log", "log", type=click.Path(path_type=Path), help="The daemon on this machine must be that of this "
              "log file.")
@click.option("--ready", is_flag=True, help="Also ask that it can do its work: broker connected, disk not full.")
@format_option
def health(log: Path | None, ready: bool, format: str) -> int:
    """Whether the daemon on this machine lives: ends with 0 or 1.

    It leaves word every 5 s for as long as its loop turns and its commits come back, in the note by which clients find
    it. No broker is asked, since a daemon whose broker is away is alive; --ready takes that into account, too.
    """
    note = read_runtime()
    if note is not None and log is not None and note.get("log") != str(log.absolute()):
        raise Trouble(f"the daemon that was started last on this machine has another log: {note.get('log')}")
    found = of_note(note)
    body = {**found.body(), "log": note.get("log") if note is not None else None,
            "pid": note.get("pid") if note is not None else None}
    show.record(format, body, [("live", found.live), ("ready", found.ready), *found.why, ("log", body["log"])],
                ["ready" if found.ready else "live" if found.live else "no"])
    return 0 if (found.ready and found.live if ready else found.live) else NO


@click.command("metrics", cls=Verb, example="bayesd metrics\n"
               "bayesd metrics --output /var/lib/prometheus/node-exporter/bayesd.prom    # every minute, by a timer")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Put them into this file, whole or not at all, for the textfile collector of node_exporter.")
@reaching
def metrics(output: Path | None, reach: Reaching) -> None:
    """The daemon's metrics in the text format of Prometheus, asked for over the broker."""
    async def go() -> list[Any]:
        async with Client(reach()) as client:
            return await client.all("metrics", "metrics")
    text = "".join(asyncio.run(go()))
    if output is None:
        click.echo(text, nl=False)
        return
    new = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        put_in_place(new, output)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Trouble(f"{output} cannot be written ({error.strerror})") from error
