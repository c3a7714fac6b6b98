"""A model with n-gram memory: the folder of a family, and the memory beside, under a model_type of our own.

No engine but ours reads the memory. A folder that said deepseek_v3 would be loaded elsewhere without it and talk
nonsense; `sobre` is refused there, by name. `base_model_type` says which family the rest is of.
"""

from dataclasses import asdict, replace
from typing import Any

from sobre.config.load import Layer, decode
from sobre.errors import CheckpointError
from sobre.models.config import MemoryConfig, ModelConfig
from sobre.models.families.base import Family, HFConfig, Rules

MODEL_TYPE = "sobre"
_NAMES = (
    "table_MW",
    "conv_KD",
    "key.weight",
    "value.weight",
    "query_norm.weight",
    "key_norm.weight",
    "value_norm.weight",
)
TENSORS: Rules = (
    ("model.memory.classes", "memory.classes_V"),
    *(
        (f"model.memory.{{i}}.{name.partition('_MW')[0].partition('_KD')[0]}", f"memory.at.{{i}}.{name}")
        for name in _NAMES
    ),
)


def with_memory(family: Family) -> Family:
    """The family's form, with the memory."""

    def to_ours(theirs: HFConfig) -> ModelConfig:
        memory = decode(MemoryConfig, [Layer("config.json", theirs["memory"])])
        return replace(family.to_ours({**theirs, "model_type": family.model_type}), memory=memory)

    def to_theirs(cfg: ModelConfig) -> dict[str, Any]:
        own = {"base_model_type": family.model_type, "memory": asdict(cfg.memory)}
        return family.to_theirs(replace(cfg, memory=MemoryConfig())) | own

    return replace(
        family,
        model_type=MODEL_TYPE,
        architecture="SobreForCausalLM",
        to_ours=to_ours,
        to_theirs=to_theirs,
        tensors=family.tensors + TENSORS,
        aliases=(),
    )


def check_leaves(cfg: ModelConfig, form: str) -> None:
    """Raise CheckpointError when the model cannot be written in a form that other engines read."""
    if cfg.memory.layers:
        raise CheckpointError(
            f"this model has n-gram memory (tables at layers {', '.join(map(str, cfg.memory.layers))}), which no reader"
            f" of {form} knows, and without which it is another model; serve it with sobre, or train one without memory"
        )
