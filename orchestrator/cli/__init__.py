"""The command line: one module for each command, imported when the command runs.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

COMMANDS = {
    "sweep": "Plan and run an experiment: noise, pre-training, tuning, report.",
    "plan": "Show what a sweep would do, and its cost. Runs nothing.",
    "corpus": "Build only the corpora, verify them, or show their contents.",
    "noise": "Build only the noise levels, or audit them row by row.",
    "embeddings": "Show, verify or export what was bought from embedding APIs.",
    "extension": "Write, list or check methods, encoders, noises and claims of your own.",
    "tasks": "List the downstream tasks, show one, or check files and data.",
    "status": "Show which steps are done, running, failed or missing.",
    "diff": "Do two runs differ only in noise? Lists every difference.",
    "report": "Write the report from the results in the store.",
    "sync": "Write to MLflow what it has missed.",
    "ui": "Open MLflow's pages on this machine.",
    "submit": "Send a sweep to a running Ray cluster.",
    "doctor": "Check versions, storage, disk, Ray and tracking.",
}
"""Every command, with its line in `--help`. The module of a command has the same name."""


class _Lazy(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"orchestrator.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  nml-orch sweep --noise 0,5,10,20,30            the demo: handwritten digits
  nml-orch sweep my.yaml --seeds 0,1,2           an experiment file, three seeds
  nml-orch plan my.yaml --set tuning.epochs=5    what would run, and why
  nml-orch status && nml-orch ui                 what is done; browse the runs""",
)
@click.version_option(package_name="nml-orch", prog_name="nml-orch")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' own logs.")
def cli(debug: bool) -> None:
    """The whole experiment of Noisy Model Learning, on a laptop or a Ray cluster."""
    if debug:
        os.environ["NML_DEBUG"] = "1"


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Exits with 0 done, 1 some steps failed, 2 a mistake, 130 stopped."""
    sys.exit(_run(argv))


def _run(argv: list[str] | None) -> int:
    from jobs.contract import StageError
    from jobs.storage.s3 import check_first
    from orchestrator.errors import NmlError

    check_first()  # whoever waits at a screen learns at once that a bucket does not answer
    try:
        result: Any = cli.main(args=argv, prog_name="nml-orch", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except NmlError as error:
        return _complain(str(error), error.exit_code)
    except StageError as error:  # of a file in the store, read by a command itself
        return _complain(str(error), 2)
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _complain("stopped; the same command continues from here", 130)
    except BrokenPipeError:
        return 1
    except Exception as error:
        from jobs.contract import StageError  # late, because it imports pydantic

        if isinstance(error, StageError):
            return _complain(str(error), 2)
        lines = str(error).strip().splitlines() or [""]
        return _complain(
            f"{type(error).__name__}: {lines[0]} (this is a bug in nml-orch; "
            f"`nml-orch --debug ...` shows where)",
            1,
        )


def _complain(message: str, code: int) -> int:
    from orchestrator.store.provenance import redact

    if os.environ.get("NML_DEBUG"):
        click.echo(redact(traceback.format_exc()), err=True, nl=False)
    click.echo(f"nml-orch: {redact(message)}", err=True)
    return code
