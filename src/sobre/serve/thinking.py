"""Whether to think, and how long: one answer from the many ways in which clients say it.

DeepSeek: `thinking: {"type": "enabled" | "disabled"}` and `reasoning_effort`. OpenAI: `reasoning_effort`. OpenRouter:
`reasoning: {effort, max_tokens, enabled, exclude}`. vLLM and SGLang: `chat_template_kwargs: {thinking,
enable_thinking}`, `thinking_token_budget`, `include_reasoning`. Two that contradict each other are a 400. A budget in
tokens goes before an effort in words.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from sobre.serve.decode import Strict, decode
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


def known_effort(word: Any) -> Any:
    if word is not None and (not isinstance(word, str) or word not in EFFORTS):
        raise PydanticCustomError("effort", "must be one of " + ", ".join(EFFORTS))
    return word


Effort = Annotated[str | None, BeforeValidator(known_effort, json_schema_input_type=Literal[*EFFORTS] | None)]
Budget = Annotated[int, Field(ge=-1, le=MAX_BUDGET)] | None


class ThinkingSwitch(Strict):
    """DeepSeek's."""

    type: Literal["enabled", "disabled"]
    budget_tokens: Budget = None


class Reasoning(Strict):
    """OpenRouter's."""

    effort: Effort = None
    max_tokens: Budget = None
    enabled: bool | None = None
    exclude: bool | None = None


class TemplateOptions(Strict):
    """vLLM's and SGLang's."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ThinkingFields(Strict):
    """All the fields of a request that speak of thoughts. A budget is in tokens: 0 for no thought, -1 for no limit."""

    thinking: ThinkingSwitch | None = None
    reasoning_effort: Effort = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking_token_budget: Budget = None
    include_reasoning: bool | None = None


class ThoughtControl(Strict):
    """llama.cpp's way to end the thought of a running answer."""

    id: str
    action: Literal["reasoning_end"]


def read_thinking(fields: dict[str, Any]) -> tuple[dict[str, Any], Thinking, bool]:
    """The other fields, what was said about thinking, and whether thoughts are to be sent."""
    names = ThinkingFields.model_fields
    rest = {name: value for name, value in fields.items() if name not in names}
    said = decode(ThinkingFields, {name: value for name, value in fields.items() if name in names})
    switch, combined = said.thinking, said.reasoning or Reasoning()
    template = said.chat_template_kwargs or TemplateOptions()
    efforts = given({"reasoning_effort": said.reasoning_effort, "reasoning.effort": combined.effort})
    budgets = given(
        {
            "thinking.budget_tokens": switch and switch.budget_tokens,
            "reasoning.max_tokens": combined.max_tokens,
            "thinking_token_budget": said.thinking_token_budget,
        }
    )
    switches = given(
        {
            "thinking.type": switch and switch.type == "enabled",
            "reasoning.enabled": combined.enabled,
            "chat_template_kwargs.thinking": template.thinking,
            "chat_template_kwargs.enable_thinking": template.enable_thinking,
        }
    )
    switches |= {name: word != "none" for name, word in efforts.items()}
    for found in (switches, efforts, budgets):
        agree(found)
    on = next(iter(switches.values()), True)
    tokens = next(iter(budgets.values()), None)
    if not on and tokens:
        first, other = next(iter(budgets)), next(iter(switches))
        raise invalid(f"'{first}' asks for thoughts and '{other}' for none; send one of them.", first)
    include = said.include_reasoning is not False and not combined.exclude
    return rest, Thinking(on and tokens != 0, tokens, next(iter(efforts.values()), None)), include


def given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def agree(found: dict[str, Any]) -> None:
    """Two fields that say the same thing must say the same."""
    if len(set(found.values())) > 1:
        first, *others = found
        other = next(name for name in others if found[name] != found[first])
        raise invalid(f"'{first}' and '{other}' contradict each other; send one of them.", other)
