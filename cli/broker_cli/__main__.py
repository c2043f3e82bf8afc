"""The `broker-cli` process: turns every outcome into an exit status and at most one line a problem."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_USAGE = 2
EXIT_UNEXPECTED = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main() -> None:
    """Run the command line of this process and leave with its exit status."""
    gc.disable()  # the process lives for one request: collecting while importing costs 6 ms and frees nothing
    status = run(sys.argv[1:])
    # Tearing the interpreter down costs another 10 ms, and waits for nothing that matters: the result is
    # flushed by then, and the one thread there may be is a request that was given up.
    os._exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; problems are on stderr by then.

    130 is for Ctrl-C and 141 for a reader of stdout that went away, as if the signal had ended the process.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last net: a traceback could show a secret
        from broker_cli.output import say  # noqa: PLC0415 - only when needed

        say(f"unexpected {_place(error)}; this is a defect of broker-cli, please report it with this line")
        return EXIT_UNEXPECTED


def _run(arguments: Sequence[str]) -> int:
    """Run the short way if it is one of the calls that machines make all day, else dispatch through click."""
    from broker_cli.errors import BrokerCliError  # noqa: PLC0415 - inside: Ctrl-C while it loads is caught too
    from broker_cli.quick import find_quick  # noqa: PLC0415

    try:
        quick = find_quick(arguments)
        if quick is None:
            return through_click(arguments)
        quick()
    except BrokerCliError as error:
        from broker_cli.output import say  # noqa: PLC0415

        say(str(error))
        return error.exit_code
    return 0


def through_click(arguments: Sequence[str]) -> int:
    """Dispatch through click, without the several lines that click prints for one mistake.

    Raises:
        BrokerCliError: a command failed.
    """
    import click  # noqa: PLC0415

    from broker_cli.app import cli, complete  # noqa: PLC0415
    from broker_cli.output import say  # noqa: PLC0415
    from broker_cli.settings import completion_asked  # noqa: PLC0415

    if asked := completion_asked():
        return complete(asked)
    try:
        with cli.make_context("broker-cli", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "broker-cli"
        say(f"{error.format_message()} (see '{command} --help')")
        return EXIT_USAGE
    return 0


def _place(error: Exception) -> str:
    """Name the kind and the line of an error, never its text: that may quote what was being handled."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    file = os.path.basename(trace.tb_frame.f_code.co_filename)  # noqa: PTH119 - pathlib costs 5 ms to load
    return f"{type(error).__name__} at {file}:{trace.tb_lineno}"


if __name__ == "__main__":
    main()
