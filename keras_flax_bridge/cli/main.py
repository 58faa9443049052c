"""Parses the command line, runs the command, and prints an error as one line."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from keras_flax_bridge.checkpoint.memory import return_freed
from keras_flax_bridge.cli import output
from keras_flax_bridge.cli.commands import convert, diff, doctor, eject, inspect, plan, verify
from keras_flax_bridge.errors import BridgeError, CorruptCheckpointError, StructureMismatchError, said
from keras_flax_bridge.startup.begin import is_command
from keras_flax_bridge.tree import words

_COMMANDS = (inspect, verify, diff, convert, eject, plan, doctor)
FINE, DIFFERENT, WRONG, BROKEN_PIPE, INTERRUPTED = 0, 1, 2, 141, 130
_ABOUT = "Inspects, compares and converts checkpoints and model files of Keras, Flax and Orbax."
_CODES = "Exit codes: 0 fine, 1 a difference or damage was found, 2 wrong use."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command-line arguments; None for those of this process.

    Returns:
        The exit code: 0 fine, 1 a difference or damage was found, 2 wrong use.

    Raises:
        SystemExit: with code 2, if the command line is wrong; with code 0 after ``--help``.
    """
    options = _parser().read(arguments)
    debug = getattr(options, "debug", False)
    return_freed()
    with output.calm(debug):
        code = _run(options, debug)
        if code == DIFFERENT and not debug:
            gc.collect()  # coroutines of reads that failed complain when they go
            if is_command():
                _close(sys.stderr)  # and threads of tensorstore when the process ends
    return code


def _run(options: Any, debug: bool) -> int:
    """Runs the command; prints errors as one line, unless debugging."""
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the pipe was closed, as by `head`
        _close(sys.stdout)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if debug:
            if is_command():
                sys.excepthook = output.tell
            raise
        output.complain(_said(error))
        return DIFFERENT if isinstance(error, CorruptCheckpointError) else WRONG


def _said(error: Exception) -> str:
    """An error as one line, except tables of leaves."""
    if isinstance(error, (StructureMismatchError, CorruptCheckpointError)):
        return str(error)
    if isinstance(error, BridgeError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {said(error, 10_000)}. Run it again with --debug to see where."


def _warn(text: str) -> None:
    output.complain(f"Warning: {text}", style="yellow")


def _close(stream: Any) -> None:
    """Discards what Python or a library still writes to a stream at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the right word for a wrong one."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands: dict[str, _Parser] = {}

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parses a command line; unknown arguments raise an error."""
        typed = sys.argv[1:] if arguments is None else arguments
        options, rest = self.parse_known_args(words.present_options(self.prog, typed, _warn))
        if rest:
            self.commands[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
        return options

    def error(self, message: str) -> NoReturn:
        output.complain(f"{message}. {self._answer(message) or f'{self.prog} --help shows the usage.'}")
        sys.exit(WRONG)

    def _answer(self, message: str) -> str:
        kind = r"invalid choice: '([\w-]+)'" if self.commands else r"arguments: .*?(?<!\S)(-[\w-]+)"
        wrong = re.search(kind, message)
        if wrong is None:
            return ""
        names = self.commands or re.findall(r"--[\w-]+", self.format_help())
        return words.answer_option(self.prog, wrong[1], names)


def _parser() -> _Parser:
    common = _Parser(add_help=False)
    said = "show the traceback of an error, and what libraries log"
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=said)
    parser = _Parser(prog="keras-flax-bridge", description=_ABOUT, epilog=_CODES, parents=[common])
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        name, _, rest = command.__doc__.partition(":")  # type: ignore[union-attr]
        about = rest.strip().splitlines()[0]
        added = commands.add_parser(name, help=about, description=about, epilog=_CODES, parents=[common])
        command.add_arguments(added)
        added.set_defaults(run=command.run, command=name)
        parser.commands[name] = added
    return parser


def _version() -> Any:
    return f"keras-flax-bridge {metadata.version('keras-flax-bridge')}"
