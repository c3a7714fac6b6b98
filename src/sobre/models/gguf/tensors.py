"""Which tensors a GGUF file holds, by llama.cpp's names, and the numbers that describe the model.

Where llama.cpp keeps things otherwise than we do:
  MLA      the up-projection of latents is two tensors per head, keys transposed (its attention is always absorbed);
           the keys and values that it speaks of are the cached ones, one for all heads;
  llama    rotates neighbours (x0, x1), so the rows of queries and keys that rotate halves change places; so do the
           rotary rows of a DeepSeek that rotates halves. Qwen rotates halves there too;
  Llama 3.1's scaling  is a tensor of divisors;
  YaRN     the table's factor is one constant times `attn_factor`, see `_yarn`.
The multi-token prediction module stays behind: llama.cpp takes none for deepseek2.

Shapes: H heads, P width without position, r rotary width, W value width, C latent width, D model width.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sobre.models.config import GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from sobre.models.decoder import Decoder
from sobre.models.gguf.file import BLOCK, Entry, Type, Value
from sobre.models.rope import frequencies, table_factor

WHOLE = (("embed.weight", "token_embd.weight"), ("norm.weight", "output_norm.weight"), ("head.weight", "output.weight"))
IN_LAYERS = (
    ("attn_norm.weight", "attn_norm.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    *(
        (f"attn.{ours}.{kind}", f"attn_{theirs}.{kind}")
        for ours, theirs in (("o", "output"),)
        for kind in ("weight", "bias")
    ),
    *((f"attn.{name}.{kind}", f"attn_{name}.{kind}") for name in ("q", "k", "v") for kind in ("weight", "bias")),
    ("attn.q_norm.weight", "attn_q_norm.weight"),
    ("attn.k_norm.weight", "attn_k_norm.weight"),
    ("attn.q_down.weight", "attn_q_a.weight"),
    ("attn.q_up.weight", "attn_q_b.weight"),
    ("attn.kv_down.weight", "attn_kv_a_mqa.weight"),
    ("attn.kv_norm.weight", "attn_kv_a_norm.weight"),
    *((f"ffn.{name}.{kind}", f"ffn_{name}.{kind}") for name in ("gate", "up", "down") for kind in ("weight", "bias")),
    ("ffn.router.weight_ED", "ffn_gate_inp.weight"),
    ("ffn.router.bias_E", "exp_probs_b.bias"),
    ("ffn.gate_EFD", "ffn_gate_exps.weight"),
    ("ffn.up_EFD", "ffn_up_exps.weight"),
    ("ffn.down_EDF", "ffn_down_exps.weight"),
    *((f"ffn.shared.{name}.weight", f"ffn_{name}_shexp.weight") for name in ("gate", "up", "down")),
)
"""(our name, theirs), for what is the same tensor."""
ALWAYS_FLOAT32 = ("_norm.weight", ".bias", "ffn_gate_inp.weight", "rope_freqs.weight")
"""Endings of names that llama.cpp wants in float32 whatever the rest is in."""
SOFTMAX, SIGMOID = 1, 2


def entries(model: Decoder, architecture: str, type_: Type) -> list[Entry]:
    """Every tensor of the file, in order. Rows that q8_0 cannot hold stay float16."""
    return [Entry(name, shape, _type(name, shape, type_), make) for name, shape, make in _tensors(model, architecture)]


def _type(name: str, shape: tuple[int, ...], type_: Type) -> Type:
    if len(shape) == 1 or name.endswith(ALWAYS_FLOAT32):
        return "f32"
    return "f16" if type_ == "q8_0" and shape[-1] % BLOCK else type_


def _tensors(model: Decoder, architecture: str) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    cfg, ours = model.cfg, {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def kept(tensor: Tensor) -> tuple[tuple[int, ...], Callable[[], Tensor]]:
        return tuple(tensor.shape), lambda: tensor

    for name, theirs in WHOLE:
        if name in ours:
            yield theirs, *kept(ours[name])
    if cfg.rope.llama3 is not None:
        yield "rope_freqs.weight", *kept(_divisors(cfg))
    for layer in range(cfg.n_layers):
        for name, theirs in IN_LAYERS:
            tensor = ours.get(f"layers.{layer}.{name}")
            if tensor is not None:
                theirs = (
                    "attn_q_a_norm.weight" if theirs == "attn_q_norm.weight" and architecture == "deepseek2" else theirs
                )
                yield f"blk.{layer}.{theirs}", tuple(tensor.shape), _turned(tensor, name, cfg, architecture)
        if isinstance(cfg.attention, MLAConfig):
            k_HCP, v_HWC = _split_kv_up(ours[f"layers.{layer}.attn.kv_up.weight"], cfg.attention)
            yield f"blk.{layer}.attn_k_b.weight", *kept(k_HCP)
            yield f"blk.{layer}.attn_v_b.weight", *kept(v_HWC)


def _split_kv_up(weight: Tensor, mla: MLAConfig) -> tuple[Tensor, Tensor]:
    k_HPC, v_HWC = weight.unflatten(0, (mla.n_heads, -1)).split([mla.nope_dim, mla.v_dim], 1)
    return k_HPC.transpose(1, 2), v_HWC


def _turned(tensor: Tensor, name: str, cfg: ModelConfig, architecture: str) -> Callable[[], Tensor]:
    """The tensor, its rotary rows in the order of pairs where the model rotates halves and llama.cpp pairs."""
    att = cfg.attention
    if cfg.rope.interleaved or architecture not in ("llama", "deepseek2"):
        return lambda: tensor
    if isinstance(att, GQAConfig) and name.startswith(("attn.q.", "attn.k.")):
        n_heads = att.n_heads if name.startswith("attn.q.") else att.n_kv_heads
        return lambda: _paired(tensor, n_heads, 0)
    if isinstance(att, MLAConfig) and name in ("attn.q.weight", "attn.q_up.weight"):
        return lambda: _paired(tensor, att.n_heads, att.nope_dim)
    if isinstance(att, MLAConfig) and name == "attn.kv_down.weight":
        return lambda: _paired(tensor, 1, att.kv_rank)
    return lambda: tensor


def _paired(tensor: Tensor, n_heads: int, first: int) -> Tensor:
    """Rows `first` on of every head, (x0, x1, ..., y0, y1, ...), become (x0, y0, x1, y1, ...)."""
    heads = tensor.unflatten(0, (n_heads, -1))
    still, turned = heads[:, :first], heads[:, first:]
    return torch.cat([still, turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)], 1).flatten(0, 1)


def _divisors(cfg: ModelConfig) -> Tensor:
    plain = RopeConfig(theta=cfg.rope.theta, interleaved=cfg.rope.interleaved)
    dim = cfg.attention.rotary_dim
    return frequencies(plain, dim) / frequencies(cfg.rope, dim)


def model_fields(cfg: ModelConfig, architecture: str) -> dict[str, Value]:
    """What llama.cpp must know to run the tensors."""
    found = {
        "vocab_size": cfg.vocab_size,
        "context_length": cfg.max_len,
        "embedding_length": cfg.d_model,
        "block_count": cfg.n_layers,
        "feed_forward_length": cfg.ffn.d_ff,
        "attention.head_count": cfg.attention.n_heads,
        "attention.layer_norm_rms_epsilon": float(cfg.norm_eps),
        "rope.dimension_count": cfg.attention.rotary_dim,
        "rope.freq_base": float(cfg.rope.theta),
        **(_mla(cfg.attention) if isinstance(cfg.attention, MLAConfig) else _gqa(cfg)),
        **_experts(cfg, architecture),
        **(_yarn(cfg.rope.yarn, architecture) if cfg.rope.yarn else {"rope.scaling.type": "none"}),
    }
    return {f"{architecture}.{key}": value for key, value in found.items()}


def _mla(mla: MLAConfig) -> dict[str, Value]:
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": mla.q_rank,
        "attention.kv_lora_rank": mla.kv_rank,
        "attention.key_length": mla.latent_dim,
        "attention.value_length": mla.kv_rank,
        "attention.key_length_mla": mla.qk_dim,
        "attention.value_length_mla": mla.v_dim,
    }


def _gqa(cfg: ModelConfig) -> dict[str, Value]:
    assert isinstance(cfg.attention, GQAConfig)
    head_dim = cfg.attention.head_dim
    return {
        "attention.head_count_kv": cfg.attention.n_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }


def _experts(cfg: ModelConfig, architecture: str) -> dict[str, Value]:
    moe = cfg.ffn
    if not isinstance(moe, MoEConfig):
        absent: dict[str, Value] = {"leading_dense_block_count": cfg.n_layers, "expert_shared_count": 0}
        return absent | {"expert_feed_forward_length": cfg.ffn.d_ff} if architecture == "deepseek2" else {}
    found: dict[str, Value] = {
        "expert_count": moe.n_experts,
        "expert_used_count": moe.n_active,
        "expert_feed_forward_length": moe.d_expert,
    }
    if architecture != "deepseek2":
        return found
    if moe.n_active_groups < moe.n_groups:
        found |= {"expert_group_count": moe.n_groups, "expert_group_used_count": moe.n_active_groups}
    return found | {
        "leading_dense_block_count": moe.n_dense_layers,
        "expert_shared_count": moe.n_shared,
        "expert_weights_scale": float(moe.route_scale),
        "expert_weights_norm": moe.norm_weights,
        "expert_gating_func": SIGMOID if moe.score == "sigmoid" else SOFTMAX,
    }


def _yarn(yarn: YarnConfig, architecture: str) -> dict[str, Value]:
    """Its table factor is 1 for deepseek2 with a multiplier, else 0.1 ln(factor) + 1; `attn_factor` times that."""
    found: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(yarn.factor),
        "rope.scaling.original_context_length": yarn.original_len,
        "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
        "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
    }
    if architecture == "deepseek2" and yarn.mscale_all_dim:
        return found | {"rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim}
    return found | {"rope.scaling.attn_factor": table_factor(yarn) / (0.1 * math.log(yarn.factor) + 1)}
