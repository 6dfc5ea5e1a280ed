"""Small changes of a source that make its mathematics wrong: another sign, factor, function, bound or dimension.

Left alone are texts, annotations, decorators, what is raised, and the defaults of parameters and attributes.
"""

import ast
from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.Pow: ast.Mult, ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv},
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {  # bounds moved, and the opposite
    **{ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,)},
}
PAIRS = (
    "log exp, log1p expm1, sqrt square, rsqrt sqrt, sin cos, sinh cosh, tanh sigmoid, softplus relu, sum mean",
    "max min, amax amin, maximum minimum, floor ceil, triu tril, logsumexp amax, logsigmoid sigmoid, cumsum cumprod",
    "prod sum, zeros_like ones_like, zeros ones, all any",
)
_EACH = [pair.split() for pair in ", ".join(PAIRS).split(", ")]
FUNCTIONS = {b: a for a, b in reversed(_EACH)} | dict(_EACH)  # of a name that stands twice the first
UNARY = {name for pair in _EACH[:8] for name in pair} | {
    "abs",
    "clamp",
    "cumsum",
    "detach",
    "flip",
    "neg",
    "reciprocal",
}
MODULES = {"torch", "math", "F"}
SKIPPED = (ast.Raise, ast.JoinedStr, ast.arguments, ast.pattern)
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list"}


class Mutant(NamedTuple):
    """Bytes `start` to `end` of a file give way to another expression; `lines` of its statement lead there."""

    path: str
    place: str
    lines: range
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.place} `{self.before}` → `{self.after}`"

    def applied(self, source: bytes) -> bytes:
        """The changed source."""
        return source[: self.start] + f"({self.after})".encode() + source[self.end :]


def mutants(path: str, source: bytes) -> Iterator[Mutant]:
    """All of a file, in its order."""
    offsets = [0]
    for text in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(text))
    for node, first in _expressions(ast.parse(source), 1):
        start, end = offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset
        place, lines = f"{node.lineno}:{node.col_offset + 1}", range(first, node.end_lineno + 1)
        for new in _changes(node):
            yield Mutant(path, place, lines, start, end, ast.unparse(node), ast.unparse(new))


def _expressions(node: ast.AST, first: int) -> Iterator[tuple[ast.expr, int]]:
    """Every expression that may change, and the first line of its statement."""
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED) or field in SKIPPED_FIELDS:
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":  # a check of lengths
                continue
            if isinstance(node, ast.ClassDef) and not isinstance(child, ast.FunctionDef):
                continue
            line = child.lineno if isinstance(child, ast.stmt) else first
            if isinstance(child, ast.expr):
                yield child, line
            yield from _expressions(child, line)


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.BinOp(left, ast.MatMult(), right):
            yield from (left, right, ast.BinOp(left, ast.MatMult(), ast.Attribute(right, "mT", ast.Load())))
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield from (ast.BinOp(left, OPERATORS[type(op)](), right), left, right)
        case ast.Compare(left, [op], [right]) if type(op) in COMPARISONS:
            yield from (ast.Compare(left, [new()], [right]) for new in COMPARISONS[type(op)])
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(float() as value):
            yield from (ast.Constant(2 * value), ast.Constant(value / 2)) if value else (ast.Constant(1.0),)
        case ast.Attribute(value, "mT" | "T"):
            yield value
        case ast.Call():
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    """Another function, the argument of one alone, and one keyword argument less."""
    for i, keyword in enumerate(node.keywords):
        if keyword.arg != "strict":
            new = deepcopy(node)
            del new.keywords[i]
            yield new
    if isinstance(node.func, ast.Attribute):
        name, value = node.func.attr, node.func.value
        if name in FUNCTIONS:
            yield ast.Call(ast.Attribute(value, FUNCTIONS[name], ast.Load()), node.args, node.keywords)
        if name in UNARY:
            function = isinstance(value, ast.Name) and value.id in MODULES
            yield node.args[0] if function and node.args else value
