"""Statements without their literals: what other people ran may be shown, what they ran it with may be secret."""

import re

LONGEST = 2_000

# What holds or may hold a value, and what looks like it and doesn't, in the order in which PostgreSQL's scanner tells them
# apart (its manual, 4.1 Lexical Structure). Each string may be cut off, as pg_stat_activity cuts its texts.
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"""
    r"""|(?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z))"""
    r"""|(?P<string>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z))"""
    r"""|(?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z))"""
    r"""|(?P<name>"(?:[^"]|"")*(?:"|\Z)|[^\W\d][\w$]*|\$\d+)"""
    r"""|(?P<number>(?:\d\w*\.?\w*|\.\d\w*)(?:(?<=[eE])[+-]\d+)?)"""
    r"""|(?P<space>\s+)|(?P<other>.)""",
    re.DOTALL,
)


def normalise(sql: str) -> str:
    """The statement on one line, each literal replaced by `?`, without comments; cut at `LONGEST` characters.

    Where the text can't be trusted from some point on (a backslash in a plain string may hide its end), it ends there.
    """
    shown: list[str] = []
    for token in _TOKEN.finditer(sql):
        if token["comment"] is not None:
            if token[0].startswith("/*") and "/*" in token[0][2:]:
                # Comments nest, so that the end which was found may be an inner one.
                shown.append(" …")
                break
            shown.append(" ")
        elif token["string"] is not None or token["escaped"] is not None:
            shown.append("?")
            if token["string"] is not None and "\\" in token[0]:
                shown.append(" …")
                break
        elif token["dollar"] is not None or token["number"] is not None:
            shown.append("?")
        else:
            shown.append(" " if token["space"] is not None else token[0])
    line = " ".join("".join(shown).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
