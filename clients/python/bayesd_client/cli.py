"""`bayesd worker run`: any program as a worker, from the command line."""

import sys
from pathlib import Path

import click

from bayesd_client.errors import BadAddress, CannotTrain, WorkerError
from bayesd_client.program import run_program
from bayesd_client.worker import Options
from bayesd_schemas.study import seconds


def _seconds(text: str) -> float:
    """90, 90s, 1h30m. A function, because click.ParamType takes a type argument in some versions only."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(seconds(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--study", required=True, help="The study to work for.")
@click.option("--name", help="This worker's name; default the broker's user, else this host with a number.")
@click.option("--slots", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="How many trials at a time.")
@click.option("--prefetch", type=click.IntRange(0, 1000), default=1, show_default=True,
              help="Trials to ask for ahead, so that no slot waits.")
@click.option("--timeout", type=_seconds, help="End a trial after this time; it fails with class timeout.")
@click.option("--lease", type=_seconds, help="How long this worker may be silent before its trial is offered again.")
@click.option("--keep", is_flag=True, help="Wait for a closed study to be opened again instead of leaving.")
@click.option("--tag", "tags", multiple=True, help="What this worker can do; may be given several times.")
@click.option("--broker", help="mqtt://[user@]host[:port] or mqtts://…; default BAYESD_BROKER, else the daemon here.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Default BAYESD_PASSWORD_FILE.")
@click.option("--ca-file", "ca_file", type=click.Path(), help="Certificates to trust (mqtts).")
@click.option("--cert-file", "cert_file", type=click.Path(), help="This worker's certificate (mqtts).")
@click.option("--key-file", "key_file", type=click.Path(), help="Its private key (mqtts).")
@click.option("--sign-key", type=click.Path(path_type=Path), help="Sign with the key in this file; default "
              "BAYESD_SIGN_KEY_FILE.")
@click.option("--root", default="", envvar="BAYESD_ROOT", help="The operator's topic prefix.")
@click.option("--spool", type=click.Path(path_type=Path), help="Where results are kept until they are recorded.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def worker_run(study: str, name: str | None, slots: int, prefetch: int, timeout: float | None, lease: float | None,
               keep: bool, tags: tuple[str, ...], broker: str | None, password_file: Path | None,
               ca_file: str | None, cert_file: str | None, key_file: str | None, sign_key: Path | None, root: str,
               spool: Path | None, command: tuple[str, ...]) -> None:
    """Run COMMAND once per trial, for example: -- python train.py --lr {lr}

    Parameters come as placeholders, or as JSON in BAYESD_PARAMS. The value is the last line that
    the program prints: a number, nan or inf (a failure), or a JSON object of the tell's fields.
    An exit status other than 0 is a failure. Lines "bayesd: step=3 value=0.7" are reports.

    Ends with 0 when the study is closed; SIGTERM gives back what is not finished.
    """
    try:
        run_program(
            command, broker, timeout_s=timeout, password_file=password_file, ca_file=ca_file,
            cert_file=cert_file, key_file=key_file, say=lambda text: click.echo(text, err=True),
            options=Options(study=study, name=name, slots=slots, prefetch=min(prefetch, slots), lease_s=lease,
                            tags=tags, keep=keep, root=root, spool=spool, sign_key=sign_key))
    except (BadAddress, CannotTrain, ValueError) as error:       # the command line is wrong
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except WorkerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
