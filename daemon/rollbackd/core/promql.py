"""PromQL as far as rollbackd has to know it: filling in a template, and finding the selectors whose samples a query reads.

A placeholder is `$service` or `${service}`, so that PromQL's own braces stay as they are. It stands inside a quoted
string, because it is a label's value; after `=~` and `!~` the value is also quoted as a regular expression. `$$` is a
dollar sign, and so is a `$` that no name follows, as at the end of a regular expression.
"""

import re
from collections.abc import Iterator, Mapping

PLACEHOLDERS = ("target", "service", "environment", "version", "previous_version")

_PLACEHOLDER = re.compile(r"\$(?:(?P<dollar>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\})")
# Strings, comments, names, durations and numbers, and single characters: enough to tell a name from what only looks so.
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)"""
    r"""|(?P<comment>\#[^\n]*)|(?P<name>[A-Za-z_:][\w:]*)|(?P<number>\d[\w.]*)|(?P<other>\S)""",
    re.DOTALL,
)
_KEYWORDS = frozenset({"and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"})
_BEFORE_LABELS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_SPECIAL_IN_REGEX = re.compile(r"[\\.+*?()|\[\]{}^$]")


def template_faults(template: str) -> list[str]:
    """What keeps a template from being filled in, each in a sentence without a path."""
    faults = []
    if not template.strip():
        faults.append("is empty")
    for token in _TOKEN.finditer(template):
        if token["comment"] is not None:
            continue
        if token["other"] in ('"', "'", "`"):
            faults.append(f"a string that begins with {token[0]} doesn't end")
            break
    strings = [(m.start(), m.end()) for m in _TOKEN.finditer(template) if m["string"] is not None]
    for found in _PLACEHOLDER.finditer(template):
        if found["dollar"]:
            continue
        name = found["bare"] if found["bare"] is not None else found["braced"]
        if name not in PLACEHOLDERS:
            known = ", ".join(f"${placeholder}" for placeholder in PLACEHOLDERS)
            faults.append(f"{found[0]} is no placeholder; there are {known}, and $$ is a dollar sign")
            continue
        around = next((s for s in strings if s[0] < found.start() and found.end() < s[1]), None)
        if around is None:
            faults.append(f'{found[0]} must stand in quotes, as the value of a label: service="$service"')
        elif template[around[0]] == "`":
            faults.append(f"{found[0]} stands in backquotes, where nothing can be escaped: take \" or '")
    return faults


def fill_in(template: str, values: Mapping[str, str]) -> str:
    """The query that a template without faults stands for; `values` has one for each of `PLACEHOLDERS`."""
    filled, end = [], 0
    for token in _TOKEN.finditer(template):
        if token["string"] is None:
            continue
        is_regex = template[: token.start()].rstrip().endswith(("=~", "!~"))
        filled += [_dollars(template[end : token.start()]), _fill_string(token[0], values, is_regex=is_regex)]
        end = token.end()
    return "".join([*filled, _dollars(template[end:])])


def selectors(query: str) -> tuple[str, ...]:
    """The instant selectors of a query, each once: whose samples its value is made of.

    Only names and braces are looked at. What isn't PromQL gives whatever it gives; the server is asked about that.
    """
    found: dict[str, None] = {}
    tokens = [t for t in _TOKEN.finditer(query) if t["comment"] is None]
    number = 0
    while number < len(tokens):
        token = tokens[number]
        after = tokens[number + 1][0] if number + 1 < len(tokens) else ""
        if token["name"] is not None and token[0].lower() in _BEFORE_LABELS:
            number = _behind(tokens, number + 1, "(", ")") if after == "(" else number + 1
        elif token["name"] is not None and (
            after == "(" or after.lower() in ("by", "without") or token[0].lower() in _KEYWORDS
        ):
            number += 1
        elif token["name"] is not None or token[0] == "{":
            first = number
            number = _behind(tokens, number + (token[0] != "{"), "{", "}")
            found[query[token.start() : tokens[max(number - 1, first)].end()]] = None
        else:
            # Of a range or a subquery only the closing bracket is looked at: `5m:10s` names nothing.
            number = max(_behind(tokens, number, "[", "]"), number + 1)
    return tuple(found)


def freshness(query: str) -> str:
    """A query for the time of the newest sample, in seconds since 1970, of whichever selector's samples are oldest.

    It is asked beside the query itself, as the time that Prometheus puts on an answer is that of the question. Empty where
    the query reads no samples.
    """
    newest = [f"max(timestamp({selector}))" for selector in selectors(query)]
    if len(newest) < 2:
        return "".join(newest)
    # `or` joins by labels: without one that differs, all but the first would be dropped.
    told_apart = [f'label_replace({one}, "of", "{number}", "", "")' for number, one in enumerate(newest)]
    return f"min({' or '.join(told_apart)})"


def _behind(tokens: list[re.Match[str]], number: int, opening: str, closing: str) -> int:
    """The number of the token behind a bracket that opens at `number`; `number` itself where none does."""
    if number >= len(tokens) or tokens[number][0] != opening:
        return number
    while number < len(tokens) and tokens[number][0] != closing:
        number += 1
    return min(number + 1, len(tokens))


def _dollars(text: str) -> str:
    return text.replace("$$", "$")


def _fill_string(text: str, values: Mapping[str, str], *, is_regex: bool) -> str:
    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        literal = values[found["bare"] if found["bare"] is not None else found["braced"]]
        return _escaped(_SPECIAL_IN_REGEX.sub(r"\\\g<0>", literal) if is_regex else literal)

    return _PLACEHOLDER.sub(value, text)


def _escaped(text: str) -> str:
    """A value inside a string of either quotes: what could end or break it as Go's escapes, which PromQL takes."""
    return "".join(_escapes(text))


def _escapes(text: str) -> Iterator[str]:
    for character in text:
        if character in "\\\"'" or ord(character) < 0x20 or ord(character) == 0x7F:
            yield f"\\x{ord(character):02x}"
        else:
            yield character
