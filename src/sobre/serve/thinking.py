"""Whether to think, and how long: one answer from the many ways in which clients say it.

DeepSeek: `thinking: {"type": "enabled" | "disabled"}` and `reasoning_effort`. OpenAI: `reasoning_effort`. OpenRouter:
`reasoning: {effort, max_tokens, enabled, exclude}`. vLLM and SGLang: `chat_template_kwargs: {thinking,
enable_thinking}`, `thinking_token_budget`, `include_reasoning`. Two that contradict each other are a 400. A budget in
tokens goes before an effort in words.
"""

from dataclasses import dataclass
from typing import Any

from sobre.serve.errors import invalid

EFFORTS = {"none": 0.0, "minimal": 1 / 16, "low": 1 / 8, "medium": 1 / 4, "high": 1 / 2}
EFFORTS |= {"xhigh": 1 / 2, "max": 3 / 4, "ultra": 3 / 4}
"""Share of the room for the answer that the thought may take. `high`, the default, leaves half of it."""
MAX_BUDGET = 2**31 - 1


@dataclass(frozen=True)
class Thinking:
    """What was asked for."""

    on: bool = True
    budget: int | None = None
    """Most tokens of thought; None leaves it to the effort; -1 means no limit but the room."""
    effort: str | None = None

    def limit(self, room: int) -> int | None:
        """Most tokens of thought where the whole answer has `room`; None for no limit of its own."""
        if self.budget == -1:
            return None
        if self.budget is not None:
            return self.budget
        return max(1, int(room * EFFORTS[self.effort or "high"]))


def read_thinking(fields: dict[str, Any]) -> tuple[dict[str, Any], Thinking, bool]:
    """The other fields, what was said about thinking, and whether thoughts are to be sent."""
    rest = dict(fields)
    switches: dict[str, bool] = {}
    efforts: dict[str, str] = {}
    budgets: dict[str, int] = {}
    include = True

    switch = rest.pop("thinking", None)
    if switch is not None:
        inner = known(switch, "thinking", ("type", "budget_tokens"))
        if inner.get("type") not in ("enabled", "disabled"):
            raise invalid("Invalid 'thinking.type': must be enabled or disabled.", "thinking.type")
        switches["thinking.type"] = inner["type"] == "enabled"
        if inner.get("budget_tokens") is not None:
            budgets["thinking.budget_tokens"] = budget(inner["budget_tokens"], "thinking.budget_tokens")
    if (named := rest.pop("reasoning_effort", None)) is not None:
        efforts["reasoning_effort"] = effort(named, "reasoning_effort")
    if (combined := rest.pop("reasoning", None)) is not None:
        inner = known(combined, "reasoning", ("effort", "max_tokens", "enabled", "exclude"))
        if inner.get("effort") is not None:
            efforts["reasoning.effort"] = effort(inner["effort"], "reasoning.effort")
        if inner.get("max_tokens") is not None:
            budgets["reasoning.max_tokens"] = budget(inner["max_tokens"], "reasoning.max_tokens")
        if inner.get("enabled") is not None:
            switches["reasoning.enabled"] = boolean(inner["enabled"], "reasoning.enabled")
        if inner.get("exclude") is not None:
            include = not boolean(inner["exclude"], "reasoning.exclude")
    if (template := rest.pop("chat_template_kwargs", None)) is not None:
        for name, value in known(template, "chat_template_kwargs", ("thinking", "enable_thinking")).items():
            switches[f"chat_template_kwargs.{name}"] = boolean(value, f"chat_template_kwargs.{name}")
    if (tokens := rest.pop("thinking_token_budget", None)) is not None:
        budgets["thinking_token_budget"] = budget(tokens, "thinking_token_budget")
    if (sent := rest.pop("include_reasoning", None)) is not None:
        include = boolean(sent, "include_reasoning") and include
    switches |= {name: word != "none" for name, word in efforts.items()}

    for found in (switches, efforts, budgets):
        agree(found)
    on = next(iter(switches.values()), True)
    tokens = next(iter(budgets.values()), None)
    if not on and tokens:
        first, other = next(iter(budgets)), next(iter(switches))
        raise invalid(f"'{first}' asks for thoughts and '{other}' for none; send one of them.", first)
    return rest, Thinking(on and tokens != 0, tokens, next(iter(efforts.values()), None)), include


def agree(found: dict[str, Any]) -> None:
    """Two fields that say the same thing must say the same."""
    if len(set(found.values())) > 1:
        first, *others = found
        other = next(name for name in others if found[name] != found[first])
        raise invalid(f"'{first}' and '{other}' contradict each other; send one of them.", other)


def known(value: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"Invalid '{where}': must be an object.", where)
    for name in value:
        if name not in names:
            place = f"{where}.{str(name)[:60]}"
            raise invalid(f"Unknown field: '{place}'; {where} may have {', '.join(names)}.", place, "unknown_field")
    return value


def boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(f"Invalid '{where}': must be true or false.", where)
    return value


def effort(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in EFFORTS:
        raise invalid(f"Invalid '{where}': must be one of {', '.join(EFFORTS)}.", where)
    return value


def budget(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= MAX_BUDGET:
        raise invalid(f"Invalid '{where}': must be a number of tokens, 0 for no thought, or -1 for no limit.", where)
    return value
