"""Python text: literals, and expressions laid out as `ruff format` lays them out."""

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
    """A value that can't be written into source."""


class Raw(str):
    """Text that is code already, such as ``jnp.float32``."""

    __slots__ = ()


def literal(value: Any) -> str:
    """A value as a Python literal; strings are quoted safely.

    >>> literal((1, None)), literal('a"b'), literal(Raw("jnp.tanh"))
    ('(1, None)', '\\'a"b\\'', 'jnp.tanh')
    """
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
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
    """A number as a Python literal; other values are refused, since settings may come from a file.

    Raises:
        Unwritable: if it is no number.

    >>> number(3), number(-0.5), number(float("inf"))
    ('3', '-0.5', 'float("inf")')
    """
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (bool, int, float)):
        raise Unwritable(f"a {type(value).__name__} where a number belongs")
    return literal(value)


def docstring_line(text: str) -> str:
    """A one-line docstring of untrusted text: characters that could end it become ``_``.

    >>> docstring_line("The model a'; b.")[3:-3]
    'The model a__ b.'
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-. ") else "_" for c in text)
    return f'"""{plain}"""'


def keyword_name(text: Any) -> str:
    """The name of an argument, as it is.

    Raises:
        Unwritable: if it can't be one.

    >>> keyword_name("mask")
    'mask'
    """
    if not isinstance(text, str) or not text.isascii() or not text.isidentifier() or keyword.iskeyword(text):
        raise Unwritable("the name of an argument that Python can't write")
    return text


def dtype_name(name: Any) -> str:
    """A dtype as the source names it.

    Raises:
        Unwritable: if it isn't one that arrays have.

    >>> dtype_name("float32")
    'jnp.float32'
    """
    if str(name) not in untrusted.DTYPES:
        raise Unwritable(f"a dtype that arrays don't have ({str(name)[:40]!r})")
    return f"jnp.{name}"


def _quoted(text: str) -> str:
    escaped = text.encode("unicode_escape").decode()
    if '"' in text and "'" not in text:
        return f"'{escaped}'"
    return '"' + escaped.replace('"', '\\"') + '"'


def identifier(text: str, taken: Callable[[str], bool], default: str) -> str:
    """A Python name made from any text: the text where it is one, and the first that is free.

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
        name: of its file, for tracebacks.
        scope: names that it finds.
    """
    exec(compile(text, name, "exec"), scope)
    return scope


def statement(head: str, expression: str, indent: str) -> list[str]:
    """The lines of ``head expression``, such as ``x = f(x)``, without needless parentheses."""
    tree = ast.parse(expression, mode="eval").body
    lines = _laid_out(head, tree, indent, "")
    if len(lines) > 1:  # breaking a line may never change what it says
        read = ast.parse("\n".join([f"def f():\n{indent}pass", *lines])).body[0].body[-1].value  # type: ignore
        if ast.dump(read) != ast.dump(tree):
            return [f"{indent}{head}{one_line(tree)}"]
    return lines


def one_line(node: ast.expr) -> str:
    """An expression on one line, in ruff's style of quotes and powers."""
    text = ast.unparse(node)
    return _restyled(text) if "'" in text or "**" in text or '"' in text else text


def _restyled(text: str) -> str:
    out, line = [], text
    position = 0
    for token in tokenize.generate_tokens(io.StringIO(line).readline):
        start, end = token.start[1], token.end[1]
        if token.type == tokenize.STRING:
            out.append(line[position:start] + _quoted(ast.literal_eval(token.string)))
            position = end
    return _powers("".join(out) + line[position:])


def _powers(text: str) -> str:
    simple = r"[\w.]+"  # ruff puts no space around a power of names and numbers
    return re.sub(rf"(?<![\w.)\]]){simple} \*\* -?{simple}(?![\w.(\[])", _closed_up, text)


def _closed_up(found: re.Match[str]) -> str:
    return found.group(0).replace(" ** ", "**")


def fits(text: str) -> bool:
    """Whether a line is not too long."""
    return len(text) <= WIDTH


def _laid_out(head: str, node: ast.expr, indent: str, tail: str) -> list[str]:
    whole = f"{indent}{head}{one_line(node)}{tail}"
    if fits(whole):
        return [whole]
    if isinstance(node, ast.Call) and (node.args or node.keywords):
        items = [("", arg) for arg in node.args]
        items += [(f"{k.arg}=" if k.arg else "**", k.value) for k in node.keywords]
        return _bracketed(f"{head}{one_line(node.func)}(", items, indent, f"){tail}")
    if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
        left, right = "[]" if isinstance(node, ast.List) else "()"
        return _bracketed(f"{head}{left}", [("", item) for item in node.elts], indent, f"{right}{tail}")
    if isinstance(node, ast.Dict):
        pairs = [(f"{one_line(k)}: ", v) for k, v in zip(node.keys, node.values, strict=True) if k]
        return _bracketed(f"{head}{{", pairs, indent, f"}}{tail}")
    inner = INDENT + indent
    if isinstance(node, ast.Starred):
        return _laid_out(f"{head}*", node.value, indent, tail)
    if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
        left, right = "[]" if isinstance(node, ast.ListComp) else "()"
        return [f"{indent}{head}{left}", *_generator(node, inner), f"{indent}{right}{tail}"]
    if isinstance(node, ast.BinOp):
        return _operation(head, node, indent, tail)
    return [f"{indent}{head}(", f"{inner}{one_line(node)}", f"{indent}){tail}"]


def _operation(head: str, node: ast.BinOp, indent: str, tail: str) -> list[str]:
    """An operation too long for a line: its last call opened, or one operand a line."""
    *operands, last = _operands(node)
    before = "".join(f"{sign}{one_line_in(operand, node)} " for sign, operand in operands)
    hugged = f"{head}{before}{last[0]}"
    opens = len(operands) == 1 and isinstance(last[1], ast.Call) and last[1].args
    if opens and fits(f"{indent}{hugged}{one_line(last[1].func)}("):  # type: ignore[attr-defined]
        return _laid_out(hugged, last[1], indent, tail)
    inner = INDENT + indent
    whole = f"{inner}{one_line(node)}"
    if fits(whole):
        return [f"{indent}{head}(", whole, f"{indent}){tail}"]
    lines = [f"{inner}{sign}{one_line_in(operand, node)}" for sign, operand in [*operands, last]]
    return [f"{indent}{head}(", *lines, f"{indent}){tail}"]


def _operands(node: ast.expr) -> list[tuple[str, ast.expr]]:
    """The operands of one precedence with the signs before them."""
    if not isinstance(node, ast.BinOp):
        return [("", node)]
    sign = one_line(ast.BinOp(ast.Name("a"), node.op, ast.Name("b")))[1:-1].strip()
    left = _operands(node.left) if _rank(node.left) == _rank(node) else [("", node.left)]
    return [*left, (f"{sign} ", node.right)]


def _rank(node: ast.expr) -> int:
    if not isinstance(node, ast.BinOp):
        return 0
    return 1 if isinstance(node.op, (ast.Add, ast.Sub)) else 2


def one_line_in(operand: ast.expr, node: ast.BinOp) -> str:
    """An operand on one line, in the parentheses that it needs inside an operation."""
    text = one_line(operand)
    return f"({text})" if isinstance(operand, ast.BinOp) and _rank(operand) < _rank(node) else text


def _bracketed(left: str, items: list[tuple[str, ast.expr]], indent: str, right: str) -> list[str]:
    """Items on one line of their own where they fit, else one a line with a last comma."""
    inner = INDENT + indent
    line = inner + ", ".join(prefix + one_line(node) for prefix, node in items)
    if fits(line):
        return [indent + left, line, indent + right]
    if len(items) == 1 and isinstance(items[0][1], (ast.GeneratorExp, ast.ListComp)):
        return [indent + left, *_generator(items[0][1], inner), indent + right]
    lines = [line for prefix, node in items for line in _laid_out(prefix, node, inner, ",")]
    return [indent + left, *lines, indent + right]


def _generator(node: Any, indent: str) -> list[str]:
    loop = node.generators[0]
    first = _laid_out("", node.elt, indent, "")
    return [*first, *_laid_out(f"for {one_line(loop.target)} in ", loop.iter, indent, "")]
