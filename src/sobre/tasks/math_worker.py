"""Compares mathematical answers in a process of its own: a line of [reference, answer] in, a line with the verdict out.

The verdict is true, false or, where the reference itself cannot be read, null. The first line out, "ready", comes when
math-verify is loaded. Run as a module by `tasks/equality.py`, which ends it when it takes too long: simplifying can go
on for ever.
"""

import json
import logging
import sys
from typing import Any


def same(reference: str, answer: str) -> bool | None:
    """Whether math-verify finds them equal, both read as LaTeX in a box; None for a reference that is no expression.

    math-verify keeps the text of what it cannot read: the same text is then equal, and any other proves nothing.
    """
    from math_verify import verify

    try:
        given = _read(reference)
    except Exception:  # whatever a parser of free text can raise
        return None
    try:
        found = _read(answer)
        equal = bool(given and found and verify(given, found, timeout_seconds=None))
    except Exception:
        equal = False
    is_read = any(not isinstance(one, str) for one in given)
    return equal if equal or is_read else None


def _read(text: str) -> list[Any]:
    """What math-verify makes of it: an expression and its text, the text alone, or nothing."""
    from math_verify import parse

    found: list[Any] = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
    return found


def main() -> None:
    logging.disable(logging.CRITICAL)
    same("x", "y")  # imports and builds everything
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(same(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
