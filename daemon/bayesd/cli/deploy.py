"""`bayesd deploy`: the certificates and the broker's files of an installation, in one command each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bayesd import mosquitto, show
from bayesd.cli.common import NO, USAGE, Trouble, format_option, need, verb
from bayesd_schemas.topics import Topics


def register(top: click.Group) -> None:
    top.add_command(deploy)


@click.group()
def deploy() -> None:
    """Certificates and broker settings of an installation. Needs no daemon and asks nobody."""


def _identities(command: Any) -> Any:
    for option in (
            click.option("--operator", "operators", multiple=True, metavar="NAME", help="Somebody who changes "
                                                                                        "studies."),
            click.option("--worker", "workers", multiple=True, metavar="NAME", help="A worker; once for each."),
            click.option("--daemon", "daemon", metavar="NAME", help="The daemon; there is one for each broker.")):
        command = option(command)
    return command


def _roles(daemon: str | None, workers: Sequence[str], operators: Sequence[str]) -> dict[str, str]:
    """Roles by name. A name is one thing only: the broker knows it by nothing else."""
    out: dict[str, str] = {}
    for name, role in [*([(daemon, mosquitto.DAEMON)] if daemon else []),
                       *((name, mosquitto.WORKER) for name in workers),
                       *((name, mosquitto.OPERATOR) for name in operators)]:
        if out.setdefault(name, role) != role:
            raise click.UsageError(f"{name} is named as {out[name]} and as {role}: a name is one or the other")
    return out


# --- Certificates ----------------------------------------------------------------------------------------


@verb(deploy, "certs", "bayesd deploy certs certs --host broker.example --host localhost --daemon bayesd --worker w1 "
      "--worker w2 --operator alice\nbayesd deploy certs certs --worker w3\nbayesd deploy certs certs --renew")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--host", "hosts", multiple=True, metavar="NAME",
              help="A name or address under which the broker is reached; once for each.")
@_identities
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="Life of a client's "
                                                                                          "certificate.")
@click.option("--broker-days", type=click.IntRange(1, 3650), default=397, show_default=True,
              help="Life of the broker's certificate.")
@click.option("--renew", is_flag=True, help="Make those anew, with the same authority, that have less than a third of "
              "their life left; and the broker's if --host names others.")
@format_option
def certs(folder: Path, hosts: tuple[str, ...], daemon: str | None, workers: tuple[str, ...],
          operators: tuple[str, ...], days: int, broker_days: int, renew: bool, format: str) -> None:
    """Make an authority of your own, the broker's certificate, and one for each identity.

    The broker takes the name in a client's certificate for its user, so that a worker can act only as itself.
    What is in FOLDER stays: run it again with another name to add one. The authority is never made anew.

    ca.key makes identities. Neither broker nor daemon nor workers need it: keep FOLDER on a machine, or a disk,
    that none of them can read, and copy only what is named.
    """
    roles = _roles(daemon, workers, operators)
    certificates = need("bayesd.certificates")
    try:
        made = certificates.issue(folder, hosts, roles, days=days, broker_days=broker_days, renew=renew)
    except certificates.CertificateError as error:
        raise Trouble(str(error), USAGE) from error
    rows = [{"name": each.file.stem, "role": each.seen.role, "done": each.done,
             "ends": each.seen.ends.isoformat().replace("+00:00", "Z"), "hosts": list(each.seen.hosts),
             "certificate": str(each.file), "key": str(each.file.with_suffix(".key")),
             "goes_to": _goes_to(each.file.stem, each.seen.role)} for each in made]
    shown = rows if format in ("json", "yaml") else [{**row, "ends": str(row["ends"])[:10]} for row in rows]
    show.rows(format, shown, [show.Column("name", "NAME"), show.Column("role", "ROLE"), show.Column("done", "DONE"),
                              show.Column("ends", "ENDS"), show.Column("goes_to", "GOES TO")])
    if any(row["done"] != "kept" for row in rows):
        show.talk(f"\nKeys are in {folder}, readable by you only. Copy each pair, and ca.crt with it, to the place "
                  f"named"
                  f" above.\n{folder}/ca.key stays here: whoever has it can be anybody. deploy/README.md has the "
                  f"commands;"
                  f" next:\n  bayesd deploy mosquitto {folder}")
    elif renew:
        show.talk("nothing is near its end")


def _goes_to(name: str, role: str) -> str:
    if role == "ca":
        return "ca.crt: everywhere; ca.key: nowhere"
    place = mosquitto.PLACE
    return {"broker": f"the broker, {place}/broker.crt and .key",
            mosquitto.DAEMON: "the daemon, /etc/bayesd/daemon.crt and .key"}.get(
                role, f"{name}'s machine, --cert-file and --key-file")


# --- mosquitto -------------------------------------------------------------------------------------------


@verb(deploy, "mosquitto", "bayesd deploy mosquitto certs\nbayesd deploy mosquitto certs --profile dynamic\n"
      "bayesd deploy mosquitto broker --profile passwords --daemon bayesd --worker w1 --operator alice")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--profile", type=click.Choice(["certificates", "passwords", "dynamic"]), default="certificates",
              show_default=True, help="TLS with client certificates and an access list; passwords on this machine; "
              "certificates with roles of the Dynamic Security plugin.")
@_identities
@click.option("--revoked", multiple=True, metavar="NAME", help="An identity that may do nothing any more.")
@click.option("--root", default="", metavar="PREFIX", help="The topic prefix.")
@click.option("--port", type=click.IntRange(1, 65535), default=None, help="Default 8883, with passwords 1883.")
@click.option("--bind", metavar="ADDRESS", help="Listen here only; default every address, with passwords 127.0.0.1.")
@click.option("--place", default=mosquitto.PLACE, show_default=True,
              help="The folder of these files on the broker's machine.")
@click.option("--state", default=mosquitto.STATE, show_default=True, help="mosquitto's own folder there.")
@click.option("--plugin", default=mosquitto.PLUGIN, show_default=True, help="The Dynamic Security plugin there.")
@format_option
def mosquitto_files(folder: Path, profile: mosquitto.Profile, daemon: str | None, workers: tuple[str, ...],
                    operators: tuple[str, ...], revoked: tuple[str, ...], root: str, port: int | None,
                    bind: str | None, place: str, state: str, plugin: str, format: str) -> None:
    """Write mosquitto's settings and access list for the named identities, and the daemon's settings.

    Without names, they are those whose certificates are in FOLDER. With passwords, one is made for each identity
    that has none there yet. Run it again after adding an identity; the files are written anew, passwords are kept.
    """
    certificates = need("bayesd.certificates")
    roles = _roles(daemon, workers, operators)
    try:
        if not roles:
            found = certificates.listed(folder)
            roles = {each.file.stem: each.seen.role for each in found if each.seen.role in mosquitto.ROLES}
        for name in (*roles, *revoked):
            certificates.check_name(name)
        roles = {name: role for name, role in roles.items() if name not in revoked}
        Topics(root)
    except (certificates.CertificateError, ValueError) as error:
        raise Trouble(str(error), USAGE) from error
    if mosquitto.DAEMON not in roles.values():
        raise Trouble(f"there is no daemon among the identities: name it with --daemon, or make its certificate with "
                      f"`bayesd deploy certs {folder} --daemon bayesd`", USAGE)
    files = {"bayesd.conf": (mosquitto.settings(profile, place=place, state=state, plugin=plugin, port=port, bind=bind),
                             "/etc/mosquitto/conf.d/"),
             "bayesd.toml": (mosquitto.daemon_settings(profile, roles, root=root, port=port), "/etc/bayesd/")}
    if profile == "dynamic":
        files["bayesd-dynamic-security.json"] = mosquitto.dynamic_security(roles, root), f"{state}/"
    else:
        files["bayesd.acl"] = mosquitto.access_list(roles, root, place, revoked), f"{place}/"
    if profile != "passwords":
        files["certificates.conf"] = mosquitto.unit_credentials(), "/etc/systemd/system/bayesd.service.d/"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if profile == "passwords":
            files["bayesd.passwd"] = _passwords(folder, roles, certificates.write_file), f"{place}/"
        for name, (text, _) in files.items():
            certificates.write_file(folder / name, text.encode(), 0o600 if name == "bayesd.passwd" else 0o644)
    except OSError as error:
        raise Trouble(f"{folder} cannot be written ({error.strerror})", NO) from error
    except certificates.CertificateError as error:
        raise Trouble(str(error), NO) from error
    show.rows(format, [{"file": str(folder / name), "goes_to": where} for name, (_, where) in files.items()],
              [show.Column("file", "FILE"), show.Column("goes_to", "GOES TO")])
    if profile == "passwords":
        show.talk(f"\nEach password is in {folder}/NAME.password, readable by you only: it goes to whom it names, the"
                  " daemon's to /etc/bayesd/mqtt-password.")


def _passwords(folder: Path, roles: Mapping[str, str], write: Any) -> str:
    """The broker's password file; a password that is there is kept."""
    lines = []
    for name in sorted(roles):
        file = folder / f"{name}.password"
        if not file.exists():
            write(file, f"{mosquitto.new_password()}\n".encode(), 0o600)
        lines.append(mosquitto.password_line(name, file.read_text(encoding="utf-8").splitlines()[0]))
    return "".join(lines)
