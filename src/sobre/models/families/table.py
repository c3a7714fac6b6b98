"""The families that load and leave. To add one: a page beside this one, and a line here.

The order matters where several could carry a model of our own: the first writes it.
"""

from importlib import import_module

from sobre.models.families.base import Family, HFConfig
from sobre.models.families.memory import MODEL_TYPE, with_memory

PAGES = (
    "deepseek",
    "llama",
    "qwen",
    "glm",
    "minimax",
    "ernie",
    "seed",
)
"""Modules beside this one; each names its families in `FAMILIES`."""
FAMILIES: tuple[Family, ...] = tuple(
    family for page in PAGES for family in import_module(f"sobre.models.families.{page}").FAMILIES
)


def family_of(theirs: HFConfig) -> Family | None:
    """The family that a config.json names; None when it is none of these."""
    has_memory = theirs.get("model_type") == MODEL_TYPE
    kind = theirs.get("base_model_type") if has_memory else theirs.get("model_type")
    for family in FAMILIES:
        if kind in (family.model_type, *family.aliases):
            return with_memory(family) if has_memory else family
    return None
