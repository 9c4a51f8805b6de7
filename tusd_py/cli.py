"""The `tusd-py` command. Exit status: 0 done, 1 failed, 2 the configuration or the call is wrong.

`reconcile`: 0 no findings, or all repaired; 1 findings are left; 2 not everything could be compared.

What a command needs is imported by it: `serve` forks, and must not have loaded what its children set up, and
the others start faster.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from tusd_py import __version__
from tusd_py.config import Config, load_config
from tusd_py.config.render import render_effective
from tusd_py.config.units import parse_duration
from tusd_py.config.validation import warnings
from tusd_py.embedded_postgres import EmbeddedPostgres
from tusd_py.errors import ConfigError, DatabaseUnavailable, TusdError
from tusd_py.logging import configure_logging
from tusd_py.protocol.upload import StagingId, UploadId

if TYPE_CHECKING:
    from tusd_py.ports import CheckResult

log = structlog.get_logger(__name__)

OK, FAILED, USAGE = 0, 1, 2
CONNECT_SECONDS = 60.0

Command = Callable[[Config, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = make_parser().parse_args(arguments)
    command: Command = options.command
    try:
        config = load_config(options.config, _overrides(options))
        configure_logging(config.logging)
        return command(config, options)
    except ConfigError as error:
        for problem in error.problems:
            print(f"tusd-py: {problem}", file=sys.stderr)
        return USAGE
    except TusdError as error:
        print(f"tusd-py: {error}", file=sys.stderr)
        return FAILED


# --- arguments ---------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tusd-py",
        description="Receive resumable uploads over tus, and move them to S3 or to a directory.",
        epilog='"tusd-py COMMAND --help" lists the options of a command.',
    )
    parser.add_argument("--version", action="version", version=f"tusd_py {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, add_arguments, text in (
        ("serve", serve, _add_listener, "receive uploads and move them to the store"),
        ("worker", worker, None, "only move finished uploads to the store"),
        ("migrate", migrate, None, "bring the database schema up to date"),
        ("transfer", transfer, _add_transfer, "queue the transfer of an upload and follow it, or queue failed ones"),
        ("reconcile", reconcile, _add_reconcile, "compare database, staging directory and store; repair what is safe"),
        ("events", events, _add_events, "list events and dead letters, send events again, try an endpoint"),
        ("staging", staging, _add_staging, "show what the staging directory holds; bind it to the database"),
        ("check-config", check_config, _add_check, "print the effective configuration, or every problem with it"),
    ):
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(command=command)
        _add_configuration(sub, default=None)
        if add_arguments is not None:
            add_arguments(sub)
    return parser


def _add_configuration(parser: argparse.ArgumentParser, *, default: object) -> None:
    config = "configuration file (TOML)"
    parser.add_argument("--config", type=Path, metavar="FILE", default=default, help=config)
    data_dir = "directory for everything that the server keeps"
    parser.add_argument("--data-dir", type=Path, metavar="DIR", default=default, help=data_dir)


def _add_listener(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 picks a free one")


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", type=UUID, metavar="ID", help="public id of the upload")
    which.add_argument(
        "--failed", action="store_true", help="queue every failed transfer of this node again, without waiting"
    )
    longest = 'longest time to follow it, for example "90s" (default: 10m)'
    parser.add_argument("--timeout", type=_duration, default=600.0, metavar="TIME", help=longest)


def _add_reconcile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="repair what is safe; without it, only report")
    parser.add_argument("--json", action="store_true", help="print each finding as a line of JSON, then the summary")
    parser.add_argument(
        "--margin", metavar="TIME", help="ignore what is younger than this (default: cleanup.reconcile_margin)"
    )


def _add_events(parser: argparse.ArgumentParser) -> None:
    from tusd_py.commands.events_arguments import add_actions

    # What was given before the action is not overwritten by what was not given after it.
    add_actions(parser, add_common=lambda sub: _add_configuration(sub, default=argparse.SUPPRESS))


def _add_staging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("adopt",), help="bind the directory to the database")
    parser.add_argument("--id", type=UUID, metavar="ID", help="id to give to the directory")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print only problems, not the configuration or warnings")
    everything = "try the database, the staging disk and every permission in the store"
    parser.add_argument("--connect", action="store_true", help=everything)
    parser.add_argument(
        "--timeout", type=float, default=CONNECT_SECONDS, metavar="SECONDS", help="longest time for --connect"
    )
    _add_listener(parser)


def _duration(text: str) -> float:
    try:
        return float(parse_duration(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line sets of the configuration."""
    overrides: dict[str, Any] = {}
    if options.data_dir is not None:
        overrides["data_dir"] = options.data_dir
    server = {key: value for key in ("host", "port") if (value := getattr(options, key, None)) is not None}
    if server:
        overrides["server"] = server
    if getattr(options, "margin", None) is not None:
        overrides["cleanup"] = {"reconcile_margin": options.margin}
    return overrides


# --- commands ------------------------------------------------------------------------------------------


def serve(config: Config, _: argparse.Namespace) -> int:
    """Run the whole service under one supervisor."""
    from tusd_py.supervisor.supervisor import Supervisor

    _log_warnings(config)
    return Supervisor(config).run()


def worker(config: Config, _: argparse.Namespace) -> int:
    """Run one worker in this process."""
    _log_warnings(config)
    with _database(config) as usable:
        from tusd_py.app import database_dsn
        from tusd_py.database.rights import check_rights
        from tusd_py.supervisor.processes import run_worker

        # The worker waits for a database that is away.
        with contextlib.suppress(DatabaseUnavailable):
            asyncio.run(check_rights(database_dsn(usable)))
        run_worker(usable, ready=lambda: None)
    return OK


def migrate(config: Config, _: argparse.Namespace) -> int:
    """Apply the migrations that the schema lacks."""
    from tusd_py.app import database_dsn
    from tusd_py.database.migrate import migrate as apply

    with _database(config) as usable:
        names = asyncio.run(apply(database_dsn(usable)))
    for name in names:
        print(f"applied {name}")
    if not names:
        print("the schema is up to date")
    return OK


def transfer(config: Config, options: argparse.Namespace) -> int:
    """Queue one transfer and follow it, or queue all failed ones. A running worker does the work."""
    from tusd_py.commands.transfer import requeue_failed, transfer_one

    with _database(config) as usable:
        if options.failed:
            asyncio.run(requeue_failed(usable, _say))
            return OK
        upload_id = UploadId(options.id)
        stored = asyncio.run(transfer_one(usable, upload_id, timeout_seconds=options.timeout, say=_say))
    return OK if stored else FAILED


def reconcile(config: Config, options: argparse.Namespace) -> int:
    """Compare the database, the staging directory and the store. Exit status: see the module."""
    try:
        _refuse_new_database(config)
        with _database(config) as usable:
            from tusd_py.commands.reconcile import reconcile_node

            report = asyncio.run(reconcile_node(usable, repair=options.repair, as_json=options.json, say=_say))
            if report.failed_checks:
                return USAGE
            return FAILED if report.left else OK
    except ConfigError:
        raise
    except TusdError as error:
        print(f"tusd-py: {error}", file=sys.stderr)
    except Exception as error:
        # The interpreter would exit with 1, which means findings.
        log.exception("reconcile_died")
        print(f"tusd-py: {type(error).__name__}: {error}", file=sys.stderr)
    return USAGE


def events(config: Config, options: argparse.Namespace) -> int:
    """List events and dead letters, have events delivered again, or try an endpoint."""
    if options.action == "test":
        from tusd_py.commands.events import send_test

        return OK if asyncio.run(send_test(config, options, _say)) else FAILED
    _refuse_new_database(config)
    with _database(config) as usable:
        from tusd_py.commands.events import ACTIONS

        asyncio.run(ACTIONS[options.action](usable, options, _say))
    return OK


def staging(config: Config, options: argparse.Namespace) -> int:
    """Show what is in the staging directory, and bind it to the database."""
    _refuse_new_database(config)
    with _database(config) as usable:
        from tusd_py.commands.staging import adopt_staging

        def confirm() -> bool:
            return options.yes or (sys.stdin.isatty() and input("Do it? [y/N] ").strip().lower() in {"y", "yes"})

        wanted = None if options.id is None else StagingId(options.id)
        return OK if asyncio.run(adopt_staging(usable, wanted, confirm=confirm, say=_say)) else FAILED


def check_config(config: Config, options: argparse.Namespace) -> int:
    """Print the effective configuration with secrets masked, or try everything that it names."""
    for warning in () if options.quiet else warnings(config):
        print(f"tusd-py: warning: {warning}", file=sys.stderr)
    if config.hooks.enabled:
        from tusd_py.hooks import make_hooks

        make_hooks(config.hooks)  # a Python hook is loaded, which at a start its children do
    if options.connect:
        with _database(config) as usable:
            return _connect(usable, options.timeout, quiet=options.quiet)
    if not options.quiet:
        print(render_effective(config), end="")
    return OK


def _connect(config: Config, timeout_seconds: float, *, quiet: bool) -> int:
    from tusd_py.commands.connection_checks import run_checks
    from tusd_py.ports import Outcome

    def show(result: CheckResult) -> None:
        if quiet and result.outcome is not Outcome.FAILED:
            return
        print(f"{result.outcome.value:<8}{result.subject:<50}{result.detail}".rstrip(), flush=True)

    return OK if asyncio.run(run_checks(config, show, timeout_seconds=timeout_seconds)) else USAGE


@contextlib.contextmanager
def _database(config: Config) -> Iterator[Config]:
    """Yield a configuration with a database: the configured one, or the embedded one while the command runs."""
    if config.database.dsn is not None:
        yield config
        return
    config.data_dir.mkdir(parents=True, exist_ok=True)
    postgres = EmbeddedPostgres(config.data_dir / "postgres", user=config.database.embedded_user)
    postgres.start()
    try:
        yield config.with_dsn(postgres.dsn)
    finally:
        postgres.stop()


def _refuse_new_database(config: Config) -> None:
    """Raise if the embedded database does not exist yet: compared with an empty one, every file is an orphan."""
    if config.database.dsn is None and not (config.data_dir / "postgres").is_dir():
        problem = f"there is no database in {config.data_dir} either: set it, or data_dir, as the server has them"
        raise ConfigError([f"database.dsn: not set, and {problem}"])


def _say(text: str) -> None:
    print(text, flush=True)


def _log_warnings(config: Config) -> None:
    for warning in warnings(config):
        log.warning("configuration", reason=warning)
    if config.auth.mode == "none":
        log.warning(
            "no_authentication",
            host=config.server.host,
            reason='auth.mode is "none": whoever reaches the server may upload',
        )
