"""`bayesd worker`: make a program a worker, and look after the workers there are."""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import Client
from bayesd.cli.common import CONFIG, USAGE, Reaching, Trouble, Verb, format_option, need, reaching, verb
from bayesd.config import ConfigError, load
from bayesd.durable import write_private
from bayesd.show import Column
from bayesd_schemas.names import is_name
from bayesd_schemas.sealed import KEY_BYTES

SHOWN_MAX = 20
VOIDED_MAX = 10


class _WithRun(click.Group):
    """`worker run` is the client's own command; it is imported when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), "run"})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _run() if name == "run" else super().get_command(ctx, name)


def _run() -> click.Command:
    from bayesd_client.cli import worker_run

    return Verb(
        worker_run.name, params=worker_run.params, callback=worker_run.callback, help=worker_run.help,
        context_settings=worker_run.context_settings,
        example="bayesd worker run --study digits-svm -- python train.py --lr {lr} --depth {depth}\n"
                "bayesd worker run --study digits-svm --slots 4 -- ./train    # parameters as JSON in BAYESD_PARAMS")


@click.group(cls=_WithRun)
def worker() -> None:
    """Run a program as a worker; list and revoke."""


def register(top: click.Group) -> None:
    top.add_command(worker)


def _leases(leases: list[list[Any]]) -> str:
    return ", ".join(f"{study} #{trial}" for study, trial, _ in leases) or "-"


_WORKERS = (Column("worker", "WORKER"), Column("run", "RUN"), Column("runs", "RUNS", True),
            Column("leases", "HOLDS", text=_leases), Column("revoked", "REVOKED"))


@verb(worker, "list", "bayesd worker list")
@reaching
@format_option
def list_(reach: Reaching, format: str) -> None:
    """Workers that the log knows, and what they hold."""
    async def go() -> list[dict[str, Any]]:
        async with Client(reach()) as client:
            return await client.all("worker.list", "workers")
    show.rows(format, asyncio.run(go()), _WORKERS, "no workers yet")


@verb(worker, "key", "bayesd worker key gpu-7 --keys /etc/bayesd/worker-keys.toml\n"
                     "bayesd worker key alice -o ~/.config/bayesd/alice.key    # an operator signs as well")
@click.argument("name", metavar="NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file for who signs; default NAME.key.")
@click.option("--keys", type=click.Path(path_type=Path), help="The daemon's file; default its setting worker_keys.")
@click.option("--replace", is_flag=True, help="Give a name that has a key another one.")
def key(name: str, output: Path | None, keys: Path | None, replace: bool) -> None:
    """Make a key for a worker or operator, so that its messages cannot be forged on the way.

    It is written to a file for who signs (`worker run --sign-key FILE`), and added to the file that the daemon
    reads at its start and at SIGHUP. Both are secrets. Under a key the broker can only delay and drop.
    """
    if not is_name(name):
        raise Trouble(f"{name!r} is not a name: up to 64 of a-z, 0-9, dot, dash and underscore", USAGE)
    try:
        seals = need("bayesd.seals")
        keys = keys or load({})[0].worker_keys
        if keys is None:
            raise Trouble("which file does the daemon read? Name it with --keys, and in its setting worker_keys", USAGE)
        output = output or Path(f"{name}.key")
        if not replace and (output.exists() or (keys.exists() and name in seals.load_keys(keys))):
            raise Trouble(f"{name} has a key in {output if output.exists() else keys}; --replace makes another one")
        secret = secrets.token_bytes(KEY_BYTES)
        write_private(output, secret.hex().encode() + b"\n")
        seals.add_key(keys, name, secret)
    except ConfigError as error:
        raise Trouble(str(error), CONFIG) from error
    except OSError as error:
        raise Trouble(f"{error.filename} cannot be written: {error.strerror}") from error
    show.talk(f"{output} is for {name}, {keys} for the daemon: give it a SIGHUP")


async def _revoke(reach: Reaching, name: str, args: dict[str, Any], force: bool) -> dict[str, Any]:
    """A revocation is for ever, and a name with a typo in it leaves the real worker at work."""
    async with Client(reach()) as client:
        known = [] if force else [row["worker"] for row in await client.all("worker.list", "workers")]
        if not force and name not in known:
            some = ", ".join(known[:SHOWN_MAX]) + (", ..." if len(known) > SHOWN_MAX else "")
            raise Trouble(f"the log knows no worker {name}; it knows {some or 'none'}. Nothing was changed; to revoke "
                          "a name before anybody comes with it, add --force")
        row: dict[str, Any] = await client.request("worker.revoke", args)
        return row


@verb(worker, "revoke", "bayesd worker revoke gpu-7 --reason \"its results are wrong\"\n"
                        "bayesd worker revoke gpu-7 --void --reason \"its clock was wrong\"")
@click.argument("name", metavar="WORKER")
@click.option("--reason", help="Why; it is kept in the log.")
@click.option("--void", is_flag=True, help="Void every trial that it told of, late ones too; needs --reason.")
@click.option("--force", is_flag=True, help="Also a name that the log does not know yet.")
@reaching
@format_option
def revoke(name: str, reason: str | None, void: bool, force: bool, reach: Reaching, format: str) -> None:
    """Give a worker nothing more and take nothing more from it; its trials are offered again.

    What it told stays, unless --void: then all of it leaves what the optimiser knows, in one commit, and the
    old events stay in the log. A trial is voided whole, also when another worker told of it too, and so are its
    copies in forks of its study.
    """
    if void and reason is None:
        raise click.UsageError("--void needs --reason")
    args = {"worker": name, **({"reason": reason} if reason is not None else {}), **({"void": True} if void else {})}
    row = asyncio.run(_revoke(reach, name, args, force))
    said = f", {row['voided']} trials are void" if "voided" in row else ""
    if row.get("copies"):
        said += f"; {row['copies']} of them are copies in {', '.join(row['forks'])}"
    show.talk(f"{name} is revoked{said}")
    shown = {key: value for key, value in row.items() if key not in ("leases", "trials")}
    if row.get("trials"):
        more = ", …" if row["voided"] > VOIDED_MAX else ""
        shown["trials"] = ", ".join(f"{study} #{trial}" for study, trial in row["trials"][:VOIDED_MAX]) + more
    show.record(format, row, list(shown.items()), [row.get("worker", name)])
