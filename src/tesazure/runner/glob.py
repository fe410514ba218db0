"""Output patterns: the shell's pathname expansion within a task's own tree.

Source: IEEE Std 1003.1-2017, Shell & Utilities, 2.13 "Pattern Matching Notation", in the POSIX
locale: `*`, `?`, bracket expressions with ranges and character classes, backslash escapes. A
leading dot is matched only by a dot in the pattern. As in bash, `[^…]` means `[!…]`.
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache

from tesazure.model import is_pattern
from tesazure.runner.collect import names_in, resolve, unlock
from tesazure.runner.tree import Tree

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \t",
    "cntrl": "\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": " \t\n\r\f\v",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_NOTHING = "(?!)"


def expand(tree: Tree, pattern: str) -> list[str]:
    """The container paths that match an absolute pattern, sorted by their bytes.

    Links are followed inside the tree, never out of it. Raises OSError when a directory cannot be
    read.
    """
    found = [""]
    parts = [part for part in pattern.split("/") if part]
    for i, part in enumerate(parts):
        is_last = i == len(parts) - 1
        found = [f"{parent}/{name}" for parent in found for name in _matching(tree, parent, part)]
        if not is_last:
            found = [path for path in found if _is_directory(tree, path)]
    return sorted(found, key=os.fsencode)


def _is_directory(tree: Tree, path: str) -> bool:
    try:
        return tree.place(resolve(tree, path)).is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _matching(tree: Tree, parent: str, part: str) -> list[str]:
    """Names in the directory `parent` that match one component of a pattern."""
    directory = resolve(tree, parent)
    if not is_pattern(part):
        name = re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)
        return [name] if _exists(tree, directory, name) else []
    matches = compile_part(part)
    return [name for name in names_in(tree, directory) if matches.fullmatch(name)]


def _exists(tree: Tree, directory: str, name: str) -> bool:
    try:
        unlock(tree, directory, os.X_OK)
        tree.place(f"{directory}/{name}").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@lru_cache(maxsize=256)
def compile_part(part: str) -> re.Pattern[str]:
    """A regular expression for one component of a pattern, to be used with `fullmatch`."""
    pieces = [""]  # what stands between asterisks
    i = 0
    while i < len(part):
        match part[i]:
            case "*":
                pieces.append("")
            case "?":
                pieces[-1] += "."
            case "[":
                bracket, i = _bracket(part, i)
                pieces[-1] += bracket
                continue
            case "\\" if i + 1 < len(part):
                i += 1
                pieces[-1] += re.escape(part[i])
            case char:
                pieces[-1] += re.escape(char)
        i += 1
    visible = "" if part[0] == "." or part.startswith("\\.") else r"(?!\.)"
    expression = visible + pieces[0]
    # Each asterisk takes as little as it can and never thinks again, as no shell does.
    expression += "".join(f"(?>.*?{piece})" for piece in pieces[1:-1] if piece)
    if len(pieces) > 1:
        expression += f".*{pieces[-1]}"
    return re.compile(expression, re.DOTALL)


def _bracket(part: str, start: int) -> tuple[str, int]:
    """The bracket expression at `start` as a regular expression, and where it ends."""
    i = start + 1
    negated = part[i : i + 1] in ("!", "^")
    i += negated
    first = i
    items: list[str] = []
    while i < len(part) and (part[i] != "]" or i == first):
        item, i = _element(part, i)
        if len(item) == 1 and part[i : i + 1] == "-" and part[i + 1 : i + 2] not in ("", "]"):
            last, i = _element(part, i + 1)
            items.append(_range(item, last))
        else:
            items.append(re.escape(item) if len(item) == 1 else _CLASSES.get(item[2:-2], ""))
    if i >= len(part):
        return re.escape("["), start + 1  # never closed: an ordinary character
    body = "".join(items)
    if negated:
        return (f"[^{body}]" if body else "."), i + 1
    return (f"[{body}]" if body else _NOTHING), i + 1


def _element(part: str, i: int) -> tuple[str, int]:
    """One element of a bracket expression: a character, or a class as `[:name:]`."""
    for kind in (":", "=", "."):
        if part.startswith(f"[{kind}", i):
            end = part.find(f"{kind}]", i + 2)
            if end > 0:
                inner = part[i + 2 : end]
                return (inner if kind != ":" and len(inner) == 1 else part[i : end + 2]), end + 2
    if part[i] == "\\" and i + 1 < len(part):
        i += 1
    return part[i], i + 1


def _range(first: str, last: str) -> str:
    if len(last) != 1 or first > last:
        return ""
    return f"{re.escape(first)}-{re.escape(last)}"
