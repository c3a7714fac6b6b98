"""What a family is: data. How its config maps to ours, and how its tensor names map to ours.

A tensor rule is a pair of patterns, theirs and ours. `{i}` is a layer and `{e}` an expert; experts are one tensor each
in the files and stacked in the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sobre.errors import CheckpointError
from sobre.models.config import ModelConfig

HFConfig = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One open family of models, as Hugging Face names it."""

    model_type: str
    architecture: str
    accepts: Callable[[ModelConfig], bool]
    """Whether a model of ours can be written in this family's form."""
    to_ours: Callable[[HFConfig], ModelConfig]
    to_theirs: Callable[[ModelConfig], dict[str, Any]]
    tensors: tuple[tuple[str, str], ...]
    """(their pattern, our pattern)."""


TRUNK = (
    ("model.embed_tokens.weight", "embed.weight"),
    ("model.norm.weight", "norm.weight"),
    ("lm_head.weight", "head.weight"),
    ("model.layers.{i}.input_layernorm.weight", "layers.{i}.attn_norm.weight"),
    ("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.ffn_norm.weight"),
    ("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.attn.o.weight"),
    ("model.layers.{i}.mlp.gate_proj.weight", "layers.{i}.ffn.gate.weight"),
    ("model.layers.{i}.mlp.up_proj.weight", "layers.{i}.ffn.up.weight"),
    ("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.ffn.down.weight"),
)
"""What every family shares."""

QKV = (
    ("model.layers.{i}.self_attn.q_proj.weight", "layers.{i}.attn.q.weight"),
    ("model.layers.{i}.self_attn.k_proj.weight", "layers.{i}.attn.k.weight"),
    ("model.layers.{i}.self_attn.v_proj.weight", "layers.{i}.attn.v.weight"),
)


def rope_theta(theirs: HFConfig) -> float:
    """`rope_parameters.rope_theta` (transformers 5) or `rope_theta` (before)."""
    nested: HFConfig = theirs.get("rope_parameters") or {}
    return float(nested.get("rope_theta") or theirs.get("rope_theta") or 10_000.0)


def refuse_rope_scaling(theirs: HFConfig, family: str) -> None:
    """Plain rope only: an unknown scaling must not be ignored."""
    scaling = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"{family}: rope scaling {kind!r} is not supported; plain rope is")


def plain_rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "rope_theta": theta}


def trunk_keys(cfg: ModelConfig) -> dict[str, Any]:
    """Config keys that every family spells alike."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.attention.n_heads,
        "max_position_embeddings": cfg.max_len,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std,
        "hidden_act": "silu",
    }
