"""The page of an evaluation: a table of the figures, then every question with every reply, to be read.

One self-contained file without script, from the result of `sobre eval` alone (schemas/evaluation.schema.json).
"""

from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from sobre.report import words

Result = dict[str, Any]


def render(result: Result) -> str:
    """The page as text."""
    folder = resources.files(__package__)
    environment = Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": words.visible, "number": words.number, "figure": figure}
    template = environment.from_string(folder.joinpath("evaluation.html.jinja").read_text(encoding="utf-8"))
    options = result["options"]
    return template.render(
        r=result,
        asked=options["folder"] or f"{options['model']} at {options['endpoint']}",
        sampled=sampled(options),
        css=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        against={name: task["against"] for name, task in result["tasks"].items() if "against" in task},
        items={name: [item for item in result["items"] if item["task"] == name] for name in result["tasks"]},
    )


def figure(share: Result) -> str:
    """45.0 % (40.1-50.2)."""
    return f"{words.percent(share['value'])} ({100 * share['ci_low']:.1f}–{100 * share['ci_high']:.1f})"


def sampled(options: Result) -> str:
    """How the replies were drawn, in words."""
    chosen = [f"{name} {options[name]}" for name in ("temperature", "top_p") if name not in options["omit"]]
    left = [name for name in ("temperature", "top_p") if name in options["omit"]]
    if left:
        chosen.append(f"the {' and '.join(left)} of the service")
    if options["thinking"] != "auto":
        told = {"on": "thinking", "off": "without a thought"}
        chosen.append(told.get(options["thinking"], f"at most {options['thinking']} tokens of thought"))
    return ", ".join(chosen)
