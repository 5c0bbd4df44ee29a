"""Finds names that generated straight-line code reads without having set them, before it runs."""

import ast
import builtins
from collections.abc import Iterable


def undefined(text: str, known: Iterable[str]) -> list[str]:
    """`function: name` for every name that a function of this module reads where it is not set, or no longer is.

    known: the module's own names. A name counts as set from the statement that sets it on; one that is set in one branch only
    counts as set behind it, so this is a check of code without such branches.
    """
    module = ast.parse(text)
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    everywhere = {*known, *dir(builtins), *(function.name for function in functions)}
    return [f"{function.name}: {name}" for function in functions for name in _unset(function, everywhere)]


def _unset(function: ast.FunctionDef, everywhere: set[str]) -> list[str]:
    # What a function sets anywhere is local to it: a global of the same name does not help.
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    local = {argument.arg for argument in function.args.args}
    visible = everywhere - local - {node.id for node in names if isinstance(node.ctx, ast.Store)}
    found: dict[str, None] = {}
    for statement in function.body:
        _step(statement, visible, local, found)
    return list(found)


def _step(statement: ast.stmt, visible: set[str], local: set[str], found: dict[str, None]) -> None:
    """One statement: what it reads has to be there; then what it sets is, and what it deletes is not."""
    inner: list[ast.stmt] = statement.body if isinstance(statement, ast.If) else []
    names = [node for part in ([statement.test] if isinstance(statement, ast.If) else [statement]) for node in ast.walk(part)]
    for node in names:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store) and node.id not in visible | local:
            found[node.id] = None
    for node in names:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            local.add(node.id)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del):
            local.discard(node.id)
    for following in inner:
        _step(following, visible, local, found)
