"""Compares mathematical answers in a process of its own: a line of [reference, answer] in, a line of true or false out.

Run as a module by `tasks/equality.py`, which ends it when it takes too long: simplifying can go on for ever.
"""

import json
import logging
import sys


def same(reference: str, answer: str) -> bool:
    """Whether math-verify finds them equal, both read as LaTeX inside a box."""
    from math_verify import parse, verify

    given, found = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (reference, answer))
    return bool(given and found and verify(given, found, timeout_seconds=None))


def main() -> None:
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        try:
            verdict = same(*json.loads(line))
        except Exception:  # whatever a parser of free text can raise: it could not read the answer
            verdict = False
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
