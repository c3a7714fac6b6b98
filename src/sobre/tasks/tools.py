"""Tools that a model may call while it answers: a calculator, and Python in the sandbox.

A call that cannot be done is answered with what is wrong: the model reads it and goes on. The calculator evaluates
exactly and evaluates nothing but arithmetic (`verify.read_expression`); Python runs where no file, network or other
process can be reached (`sandbox.run_code`), and raises SandboxError on a machine that cannot hold it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sobre.tasks.sandbox import Limits, mechanism, run_code
from sobre.tasks.verify import read_expression

Tool = Mapping[str, Any]
LIMITS = Limits(seconds=5)
LONGEST = 2000
"""Characters of a result; of a longer one the beginning is given, and said to be that."""


def _function(name: str, what: str, argument: str, meaning: str) -> Tool:
    parameters = {"type": "object", "properties": {argument: {"type": "string", "description": meaning}}}
    described = {"name": name, "description": what, "parameters": {**parameters, "required": [argument]}}
    return {"type": "function", "function": described}


TOOLS: Mapping[str, Tool] = {
    "calculator": _function(
        "calculator", "The exact value of an expression of + - * / and parentheses.", "expression", "such as (3+4)*12"
    ),
    "python": _function("python", "Run Python code; what it prints comes back.", "code", "a whole program"),
}
"""As OpenAI's clients describe functions."""
_ARGUMENT = {"calculator": "expression", "python": "code"}


def check_tools(names: Iterable[str]) -> None:
    """Raise SandboxError for Python on a machine that cannot hold it."""
    if "python" in names:
        mechanism()


def call(name: str, arguments: str, allowed: tuple[str, ...]) -> str:
    """What a call gives: the result, or what is wrong with it."""
    if name not in allowed:
        return f"error: there is no tool {name[:40]!r}; there is {', '.join(allowed)}"
    try:
        given = json.loads(arguments)[_ARGUMENT[name]]
    except (ValueError, KeyError, TypeError, RecursionError):
        given = None
    if not isinstance(given, str):
        return f'error: the arguments must be JSON such as {{"{_ARGUMENT[name]}": "..."}}'
    result = calculate(given) if name == "calculator" else run(given)
    if len(result) > LONGEST:
        return f"{result[:LONGEST]}\n(the first {LONGEST:,} of {len(result):,} characters)"
    return result


def calculate(expression: str) -> str:
    """The exact value: an integer, or a fraction such as 7/3."""
    read = read_expression(expression)
    if read is None:
        return "error: this is no expression of whole numbers, + - * / and parentheses, or it divides by zero"
    return str(read[0])


def run(code: str) -> str:
    """What the code prints; where it did not come to its end, that and the last line of its complaint."""
    outcome = run_code(code, LIMITS)
    if outcome.status == "done":
        return outcome.stdout or "(nothing was printed)"
    complaint = outcome.stderr.strip().splitlines()
    why = {"time": f"no end within {LIMITS.seconds:g} s", "memory": "too much memory", "output": "too much output"}
    return f"{outcome.stdout}error: {why.get(outcome.status) or (complaint[-1] if complaint else 'it ended early')}"
