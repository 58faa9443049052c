"""Python source text: literals, identifiers, and statements formatted as `ruff format` does."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_flax_bridge.tree import untrusted

WIDTH = 88  # ruff's default
INDENT = "    "


class Unwritable(TypeError):  # noqa: N818 - it never leaves the package
    """Raised for a value that can't be written into source."""


class Raw(str):
    """Text that is written as code, without quotes, such as ``jnp.float32``."""

    __slots__ = ()


def literal(value: Any) -> str:
    """A value as a Python literal; strings are quoted safely.

    >>> literal((1, None)), literal('a"b'), literal(Raw("jnp.tanh"))
    ('(1, None)', '\\'a"b\\'', 'jnp.tanh')
    """
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, (tuple, list)):
        items = ", ".join(map(literal, value))
        tail = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({items}{tail})" if isinstance(value, tuple) else f"[{items}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, np.generic):
        return literal(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return f'float("{value}")'
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float)):
        return "..." if value is Ellipsis else repr(value)
    raise Unwritable(f"a {type(value).__name__} has no literal")


def number(value: Any) -> str:
    """A number as a Python literal; other values are rejected, since settings may come from a file.

    Raises:
        Unwritable: if it is not a number.

    >>> number(3), number(-0.5), number(float("inf"))
    ('3', '-0.5', 'float("inf")')
    """
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (bool, int, float)):
        raise Unwritable(f"a {type(value).__name__} where a number is expected")
    return literal(value)


def docstring_line(text: str) -> str:
    """A one-line docstring of untrusted text: characters that could end it become ``_``.

    >>> docstring_line("The model a'; b.")[3:-3]
    'The model a__ b.'
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-. ") else "_" for c in text)
    return f'"""{plain}"""'


def keyword_name(text: Any) -> str:
    """The name of a keyword argument, unchanged.

    Raises:
        Unwritable: if it is not a valid name.

    >>> keyword_name("mask")
    'mask'
    """
    if not isinstance(text, str) or not text.isascii() or not text.isidentifier() or keyword.iskeyword(text):
        raise Unwritable("an argument name that is not a Python identifier")
    return text


def dtype_name(name: Any) -> str:
    """The expression of a dtype in the source.

    Raises:
        Unwritable: if it is not the name of an array dtype.

    >>> dtype_name("float32")
    'jnp.float32'
    """
    if str(name) not in untrusted.DTYPES:
        raise Unwritable(f"an unknown dtype ({str(name)[:40]!r})")
    return f"jnp.{name}"


def _quote(text: str) -> str:
    escaped = text.encode("unicode_escape").decode()
    if '"' in text and "'" not in text:
        return f"'{escaped}'"
    return '"' + escaped.replace('"', '\\"') + '"'


def identifier(text: str, taken: Callable[[str], bool], default: str) -> str:
    """Converts text to a Python identifier that is not taken; appends a number if necessary.

    >>> identifier('x"); import os #', {"x_import_os"}.__contains__, "layer")
    'x_import_os_2'
    """
    name = re.sub(r"[^0-9a-zA-Z]+", "_", text)
    name = text if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", text) else name.strip("_")
    if not name or name[0].isdigit():
        name = f"{default}_{name}" if name else default
    free, count = name, 1
    while taken(free) or keyword.iskeyword(free):
        count += 1
        free = f"{name}_{count}"
    return free


def executed(text: str, name: str, scope: dict[str, Any]) -> dict[str, Any]:
    """Executes generated source and returns its definitions; nothing else runs generated code.

    Args:
        text: the source.
        name: its file name, for tracebacks.
        scope: the global names that it can use; its definitions are added.
    """
    exec(compile(text, name, "exec"), scope)
    return scope


def statement(head: str, expression: str, indent: str) -> list[str]:
    """The formatted lines of ``head expression``, such as ``x = f(x)``, without redundant parentheses."""
    tree = ast.parse(expression, mode="eval").body
    lines = _layout(head, tree, indent, "")
    if len(lines) > 1:  # a line break must not change the expression
        read = ast.parse("\n".join([f"def f():\n{indent}pass", *lines])).body[0].body[-1].value  # type: ignore
        if ast.dump(read) != ast.dump(tree):
            return [f"{indent}{head}{one_line(tree)}"]
    return lines


def one_line(node: ast.expr) -> str:
    """An expression on one line, with quotes and powers in the style of ruff."""
    text = ast.unparse(node)
    return _in_ruff_style(text) if "'" in text or "**" in text or '"' in text else text


def _in_ruff_style(text: str) -> str:
    out, line = [], text
    position = 0
    for token in tokenize.generate_tokens(io.StringIO(line).readline):
        start, end = token.start[1], token.end[1]
        if token.type == tokenize.STRING:
            out.append(line[position:start] + _quote(ast.literal_eval(token.string)))
            position = end
    return _format_powers("".join(out) + line[position:])


def _format_powers(text: str) -> str:
    simple = r"[\w.]+"  # ruff formats a power of names and numbers without spaces
    return re.sub(rf"(?<![\w.)\]]){simple} \*\* -?{simple}(?![\w.(\[])", _without_spaces, text)


def _without_spaces(found: re.Match[str]) -> str:
    return found.group(0).replace(" ** ", "**")


def fits(text: str) -> bool:
    """Whether a line is at most `WIDTH` characters long."""
    return len(text) <= WIDTH


def _layout(head: str, node: ast.expr, indent: str, tail: str) -> list[str]:
    whole = f"{indent}{head}{one_line(node)}{tail}"
    if fits(whole):
        return [whole]
    if isinstance(node, ast.Call) and (node.args or node.keywords):
        items = [("", arg) for arg in node.args]
        items += [(f"{k.arg}=" if k.arg else "**", k.value) for k in node.keywords]
        return _bracket_lines(f"{head}{one_line(node.func)}(", items, indent, f"){tail}")
    if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
        left, right = "[]" if isinstance(node, ast.List) else "()"
        return _bracket_lines(f"{head}{left}", [("", item) for item in node.elts], indent, f"{right}{tail}")
    if isinstance(node, ast.Dict):
        pairs = [(f"{one_line(k)}: ", v) for k, v in zip(node.keys, node.values, strict=True) if k]
        return _bracket_lines(f"{head}{{", pairs, indent, f"}}{tail}")
    inner = INDENT + indent
    if isinstance(node, ast.Starred):
        return _layout(f"{head}*", node.value, indent, tail)
    if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
        left, right = "[]" if isinstance(node, ast.ListComp) else "()"
        return [f"{indent}{head}{left}", *_comprehension_lines(node, inner), f"{indent}{right}{tail}"]
    if isinstance(node, ast.BinOp):
        return _operation_lines(head, node, indent, tail)
    return [f"{indent}{head}(", f"{inner}{one_line(node)}", f"{indent}){tail}"]


def _operation_lines(head: str, node: ast.BinOp, indent: str, tail: str) -> list[str]:
    """Splits an operation that is too long: inside its last call, or one operand per line."""
    *operands, last = _operands(node)
    before = "".join(f"{sign}{_parenthesized(operand, node)} " for sign, operand in operands)
    hugged = f"{head}{before}{last[0]}"
    opens = len(operands) == 1 and isinstance(last[1], ast.Call) and last[1].args
    if opens and fits(f"{indent}{hugged}{one_line(last[1].func)}("):  # type: ignore[attr-defined]
        return _layout(hugged, last[1], indent, tail)
    inner = INDENT + indent
    whole = f"{inner}{one_line(node)}"
    if fits(whole):
        return [f"{indent}{head}(", whole, f"{indent}){tail}"]
    lines = [f"{inner}{sign}{_parenthesized(operand, node)}" for sign, operand in [*operands, last]]
    return [f"{indent}{head}(", *lines, f"{indent}){tail}"]


def _operands(node: ast.expr) -> list[tuple[str, ast.expr]]:
    """The operands of a chain of operators of equal precedence, each with its operator."""
    if not isinstance(node, ast.BinOp):
        return [("", node)]
    sign = one_line(ast.BinOp(ast.Name("a"), node.op, ast.Name("b")))[1:-1].strip()
    left = _operands(node.left) if _precedence(node.left) == _precedence(node) else [("", node.left)]
    return [*left, (f"{sign} ", node.right)]


def _precedence(node: ast.expr) -> int:
    if not isinstance(node, ast.BinOp):
        return 0
    return 1 if isinstance(node.op, (ast.Add, ast.Sub)) else 2


def _parenthesized(operand: ast.expr, node: ast.BinOp) -> str:
    """An operand on one line, in parentheses if its precedence requires them."""
    text = one_line(operand)
    return (
        f"({text})" if isinstance(operand, ast.BinOp) and _precedence(operand) < _precedence(node) else text
    )


def _bracket_lines(left: str, items: list[tuple[str, ast.expr]], indent: str, right: str) -> list[str]:
    """Items in brackets: on one line if they fit, otherwise one per line with a trailing comma."""
    inner = INDENT + indent
    line = inner + ", ".join(prefix + one_line(node) for prefix, node in items)
    if fits(line):
        return [indent + left, line, indent + right]
    if len(items) == 1 and isinstance(items[0][1], (ast.GeneratorExp, ast.ListComp)):
        return [indent + left, *_comprehension_lines(items[0][1], inner), indent + right]
    lines = [line for prefix, node in items for line in _layout(prefix, node, inner, ",")]
    return [indent + left, *lines, indent + right]


def _comprehension_lines(node: Any, indent: str) -> list[str]:
    loop = node.generators[0]
    first = _layout("", node.elt, indent, "")
    return [*first, *_layout(f"for {one_line(loop.target)} in ", loop.iter, indent, "")]
