"""The errors of the package, each with the place, the value found, the expected value and a fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    r"""Escapes text to one line that can neither control a terminal nor fake another line.

    Names in a file are untrusted. Control characters, escape sequences, line separators, bidirectional
    marks and lone surrogates are written as Python escapes.

    >>> printable("dense/kernel"), printable("a\x1b[2J"), printable("a\nb"), printable("\u202egpj.exe")
    ('dense/kernel', 'a\\x1b[2J', 'a\\nb', '\\u202egpj.exe')
    """
    if text.isprintable():
        return text if type(text) is str else str(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printed(lines: Iterable[str]) -> str:
    r"""Joins lines that may hold untrusted names, so that each stays one line.

    >>> printed(["a", "b\n"])
    'a\nb\\n'
    """
    return "\n".join(map(printable, lines))


def printable_lines(text: str) -> str:
    r"""Escapes text of several lines, whose line feeds come from this package.

    >>> printable_lines("a\tb\nc\x1b")
    'a\\tb\nc\\x1b'
    """
    return printed(text.split("\n"))


def shortened(text: str, most: int = 200) -> str:
    """The beginning of a text of others as one printable line: whatever an error repeats is cut here.

    >>> shortened("dense" + chr(27) + "[31m"), shortened("a" * 100, 5)
    ('dense\\\\x1b[31m', 'aaaaa...')
    """
    safe = printable(text)
    return safe if len(safe) <= most else f"{safe[:most]}..."


def said(error: BaseException, most: int = 500) -> str:
    """The message of a library's error, in one line.

    >>> said(ValueError("a  config\\n\\nwith a name"))
    'a config with a name'
    """
    return shortened(" ".join(str(error).split()), most)


class Listing(str):
    """Text of several lines in an error; every other part of an error is one line."""

    __slots__ = ()


def listing(head: str, items: Iterable[str]) -> Listing:
    r"""A head, and one item per line, with untrusted names escaped.

    >>> listing("damaged leaves", ["a", "b\n"])
    'damaged leaves:\n  a\n  b\\n\n'
    """
    lines = "".join(f"\n  {printable(item)}" for item in items)
    return Listing(f"{printable(head)}:{lines}\n")


def _shown(text: str | None) -> str | None:
    return text if text is None or isinstance(text, Listing) else printable(str(text))


class BridgeError(Exception):
    """Base of every error that the bridge raises.

    What to do: follow `fix`.

    Args:
        where: the path or name of what is wrong, such as ``params/dense/kernel``.
        got: what was found there; a kind, a shape and a dtype, never array contents.
        expected: what is valid there.
        fix: one sentence that says what to do.
    """

    def __init__(
        self,
        where: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ):
        # one bare argument is a whole message: so pickle and Keras's traceback filter rebuild errors
        if fix is None:
            where = printable_lines(where)
            super().__init__(where)
        else:
            # any text may hold names from a file: here it becomes one line without control characters
            where, got, expected, fix = printable(str(where)), _shown(got), _shown(expected), printable(fix)
            super().__init__(f"{where}: got {got}, expected {expected}. {fix}")
        self.where = where
        self.got = got
        self.expected = expected
        self.fix = fix


class BackendError(BridgeError, ValueError):
    """Keras runs, or is configured to run, on a backend other than JAX.

    What to do: set the environment variable ``KERAS_BACKEND=jax`` before the first import of Keras.
    """


class NotBuiltError(BridgeError, ValueError):
    """A model, an optimizer or a metric has no variables yet, or a model was never compiled.

    What to do: pass ``batch=``, call the model on data, or compile it.
    """


class OwnershipError(BridgeError, ValueError):
    """A buffer was used after it moved into a state or was donated.

    What to do: use the state that the step returned, or call ``state.assign_to(model)`` for a moved one.
    """


class UnsupportedLayerError(BridgeError, ValueError):
    """A layer can't be converted or wrapped; the message names it and the reason.

    What to do: register a rule, keep the layer as a Keras layer, or leave it in the data pipeline.
    """


class UnsupportedOptimizerError(BridgeError, ValueError):
    """An optimizer, or one of its options, can't be converted.

    What to do: use ``kfb.as_optax``, which runs any Keras optimizer.
    """


class StructureMismatchError(BridgeError, ValueError):
    """Two structures don't match: two trees, a batch and a model, or an argument and its expected form.

    Lists all leaves that differ; nothing was assigned.

    What to do: read the list from the top; `restore` takes ``rename=`` for other names, ``include=`` and
    ``partial=`` for parts, ``cast=`` for dtypes.

    Args:
        where: what was compared, such as ``checkpoint /runs/7``.
        got: what was found; None for how many leaves differ.
        expected: what is valid; None for the same leaves on both sides.
        report: the lines of a table of all differences, one per leaf; empty for one line per path.
        missing: paths that were expected and not found.
        unexpected: paths that were found and not expected.
        mismatched: paths found on both sides with different shapes or dtypes.
        fix: one sentence that says what to do.
    """

    def __init__(
        self,
        where: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        report: str | Sequence[str] = (),
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        fix: str | None = None,
    ):
        kinds = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
        counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in kinds.items()) + " leaves"
        super().__init__(
            where, got=got or counts, expected=expected or "the same leaves on both sides", fix=fix
        )
        lines = [f"  {kind:<11} {path}" for kind, paths in kinds.items() for path in paths]
        given = report.split("\n") if isinstance(report, str) else report
        table = printed(given if report else lines)
        self.args = (f"{self.args[0]}\n{table}" if table else self.args[0],)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.mismatched = tuple(mismatched)


class ArgumentError(BridgeError, ValueError):
    """An argument has an invalid value; nothing was read or written.

    What to do: pass one of the values that the message names.
    """


class SignatureError(ArgumentError, TypeError):
    """A call does not match the signature: an argument is unknown or missing, or there are too many.

    What to do: use the argument that the message names.
    """


class UnknownNameError(BridgeError, ValueError, AttributeError):
    """A module, a class or an object has no attribute of that name.

    What to do: use the name in the message.
    """


class CheckpointError(BridgeError):
    """A checkpoint can't be written, found or read.

    What to do: use a separate folder for each run; the message names the file.
    """


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is damaged; the message names the leaf.

    What to do: restore another step; ``kfb.verify(path)`` lists what is damaged.
    """


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at a path, or the requested step does not exist.

    What to do: check the path: a step folder and the root folder of a run both work.
    """


class StepAlreadyExistsError(CheckpointError, FileExistsError):
    """The step or file to write already exists; it is not changed.

    What to do: continue that run with ``manager.restore``, or use another folder.
    """
