"""Reading the source of a revision: what its downgrade() is, without running it."""

from __future__ import annotations

import ast
import os
import re
from typing import Dict

Functions = Dict[str, ast.FunctionDef]


def reachable_from(name: str, functions: Functions) -> list[ast.FunctionDef]:
    """The function and those of the same file that it calls, each once."""
    found: list[ast.FunctionDef] = []
    waiting = [name]
    while waiting:
        function = functions.get(waiting.pop())
        if function is None or function in found:
            continue
        found.append(function)
        waiting += [
            n.func.id for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
    return found


def body_of(function: ast.FunctionDef | None, functions: Functions) -> str:
    """`missing`, `empty`, `raises`, `asks` or `written`."""
    if function is None:
        return "missing"
    statements = [s for s in function.body if not is_idle(s)]
    if not statements:
        return "empty"
    if isinstance(statements[0], ast.Raise):
        return "raises"
    for reached in reachable_from(function.name, functions):
        for node in ast.walk(reached):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input":
                return "asks"
    return "written"


def is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), os.path.realpath(folder)]) == os.path.realpath(folder)


def asks_for_mode(nodes: list[ast.AST]) -> bool:
    """Whether the code asks if it is being rendered: then what it renders says nothing of what it runs."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("is_offline_mode", "as_sql") for node in nodes
    )


def is_comment(text: str) -> bool:
    """Whether a rendered text says nothing: Alembic writes its own remarks between the statements."""
    return all(not line.strip() or line.lstrip().startswith("--") for line in text.splitlines())


def is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Return):
        return statement.value is None or isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def reason_to_stand_alone(nodes: list[ast.AST]) -> str:
    """Why it can't share a transaction, read from the source; empty where it can."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr == "autocommit_block":
            return "it leaves the transaction with autocommit_block()"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
            return "it commits by itself"
        if isinstance(node, ast.keyword) and node.arg == "postgresql_concurrently":
            return "it works on an index concurrently"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.search(r"\bCONCURRENTLY\b", node.value, re.IGNORECASE):
                return "it works on an index concurrently"
            if re.search(r"(^|;)\s*COMMIT\b", node.value, re.IGNORECASE):
                return "it commits by itself"
    return ""


def literal_calls(nodes: list[ast.AST]) -> list[dict[str, str]]:
    """`op.drop_table("t")`, `op.drop_column("t", "c")` and the like, as far as the arguments are literals."""
    calls = []
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        literals = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        schema = [
            k.value.value for k in node.keywords if k.arg == "schema" and isinstance(k.value, ast.Constant)
        ]
        if node.func.attr in ("drop_table", "drop_column") and literals:
            table = ".".join([*(str(s) for s in schema if s), literals[0]])
            column = literals[1] if node.func.attr == "drop_column" and len(literals) > 1 else ""
            calls.append({"name": node.func.attr, "table": table, "column": column})
    return calls
