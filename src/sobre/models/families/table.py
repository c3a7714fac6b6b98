"""The families that load and leave. To add one: a page beside this one, and a line here.

The order matters where several could carry a model of our own: the first writes it.
"""

from sobre.models.families import deepseek, ernie, glm, llama, minimax, qwen, seed
from sobre.models.families.base import Family, HFConfig
from sobre.models.families.memory import MODEL_TYPE, with_memory

FAMILIES: tuple[Family, ...] = (
    deepseek.V3,
    deepseek.V2,
    deepseek.V32,
    llama.LLAMA,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    glm.GLM4_MOE,
    minimax.M2,
    minimax.TEXT_01,
    ernie.ERNIE,
    ernie.ERNIE_MOE,
    seed.SEED_OSS,
)


def family_of(theirs: HFConfig) -> Family | None:
    """The family that a config.json names; None when it is none of these."""
    has_memory = theirs.get("model_type") == MODEL_TYPE
    kind = theirs.get("base_model_type") if has_memory else theirs.get("model_type")
    for family in FAMILIES:
        if kind in (family.model_type, *family.aliases):
            return with_memory(family) if has_memory else family
    return None
