"""Parameters, FLOPs and cache bytes of a model, exactly, from its config alone. No torch.

A product of an (m, k) by a (k, n) matrix is 2mkn FLOPs; the backward pass is twice the forward one. Only matrix
products count: the embedding is a look-up, norms and activations are free, a token pays for the experts it visits.
Checked on DeepSeek-V3 (arXiv 2412.19437): 671,026,419,200 parameters without MTP, and with sequences of 4,096 tokens
the 250 GFLOP per trained token of arXiv 2505.09343.

Two forms of latent attention are counted as they run: naive where the step brings all its keys (training, prefill),
absorbed where keys come from the cache, unless widening these first is less (`MLAConfig.widens`). N-gram memory is a
look-up too: only its key and value are products.

Shapes: D width, E experts, A active, L layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sobre.models.config import (
    Attention,
    DenseConfig,
    LightningConfig,
    LoraConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    attended,
)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ParamCount:
    """How many numbers a model has. `total` and `active` leave MTP out, as published counts do."""

    total: int
    """Stored numbers: parameters and router biases. A tied head counts once."""
    active: int
    """Numbers in the matrices that one token is multiplied by, output head included, embedding not."""
    mtp: int
    """Stored numbers of the MTP module, which shares embedding and head."""
    by_part: dict[str, int]
    """`total` split into embed, attention, ffn (dense and shared), experts, router, norms, head and memory."""


@dataclass(frozen=True)
class Flops:
    """FLOPs per token, output head included."""

    forward: float
    train: float
    """Forward and backward, MTP included if the model has it."""


def shapes(cfg: ModelConfig) -> Shapes:
    """Name and shape of every stored tensor of the decoder (parameters and router biases), MTP last."""
    found: Shapes = {"embed.weight": (cfg.vocab_size, cfg.d_model)}
    for layer in range(cfg.n_layers):
        found |= _block(cfg, layer, f"layers.{layer}")
    found["norm.weight"] = (cfg.d_model,)
    if not cfg.tied:
        found["head.weight"] = (cfg.vocab_size, cfg.d_model)
    if cfg.n_mtp:
        found |= {f"mtp.{norm}.weight": (cfg.d_model,) for norm in ("embed_norm", "hidden_norm", "norm")}
        found["mtp.proj.weight"] = (cfg.d_model, 2 * cfg.d_model)
        found |= _block(cfg, cfg.n_layers, "mtp.block")
    return found | _memory(cfg)


def params(cfg: ModelConfig) -> ParamCount:
    """Count the model's numbers."""
    by_part = dict.fromkeys(("embed", "attention", "ffn", "experts", "router", "norms", "head", "memory"), 0)
    mtp = 0
    for name, shape in shapes(cfg).items():
        if name.startswith("mtp."):
            mtp += math.prod(shape)
        else:
            by_part[_part(name)] += math.prod(shape)
    return ParamCount(sum(by_part.values()), _active(cfg) + cfg.vocab_size * cfg.d_model, mtp, by_part)


def forward_flops(
    cfg: ModelConfig, lengths: Sequence[int], *, starts: Sequence[int] = (), n_logits: int | None = None
) -> float:
    """A forward pass over sequences that bring `lengths` new tokens each, after `starts` cached ones (none: fresh).

    `n_logits` says how many tokens pay for the output head (none: all of them).
    """
    starts = starts or [0] * len(lengths)
    n_tokens = sum(lengths)
    heads = n_tokens if n_logits is None else n_logits
    matrices = 2.0 * (_active(cfg) * n_tokens + cfg.vocab_size * cfg.d_model * heads)
    # a step that brings cached keys attends to latents, or widens them first, as models/mla.py does
    widening = _widening(cfg.attention, lengths, starts)
    per_pair = _flops_per_pair(cfg, absorbed=any(starts) and not widening)
    states = 0.0 if any(starts) else _recurrent(cfg) * n_tokens
    return matrices + states + cfg.n_layers * (per_pair * attended(lengths, starts) + widening)


def _widening(attn: Attention, lengths: Sequence[int], starts: Sequence[int]) -> float:
    """FLOPs of one layer that rebuilds the keys and values of its cached latents; 0 where it does not."""
    if not (isinstance(attn, MLAConfig) and any(starts) and attn.widens(lengths, starts)):
        return 0.0
    return 2.0 * attn.n_heads * attn.kv_rank * (attn.nope_dim + attn.v_dim) * sum(starts)


def train_flops(
    cfg: ModelConfig, lengths: Sequence[int], *, n_logits: int | None = None, lora: LoraConfig | None = None
) -> float:
    """Forward and backward over fresh sequences; MTP runs over the same tokens and pays for the head again.

    With adapters (`lora`, rank 0: none) the weights are frozen: no gradient of them, none through MTP, and three small
    products of each adapter more.
    """
    total = 3 * forward_flops(cfg, lengths, n_logits=n_logits)
    if lora is not None and lora.rank:
        n_tokens = sum(lengths)
        heads = n_tokens if n_logits is None else n_logits
        matrices = 2.0 * (_active(cfg) * n_tokens + cfg.vocab_size * cfg.d_model * heads)
        return total - matrices + 6.0 * adapter_numbers(cfg, lora, active=True) * n_tokens
    if cfg.n_mtp:
        n_tokens = sum(lengths)
        heads = n_tokens if n_logits is None else n_logits
        pairs = sum(new * (new + 1) // 2 for new in lengths)
        matrices = 2.0 * (_active_mtp(cfg) * n_tokens + cfg.vocab_size * cfg.d_model * heads)
        total += 3 * (matrices + _flops_per_pair(cfg, absorbed=False) * pairs)
    return total


def adapter_numbers(cfg: ModelConfig, lora: LoraConfig, *, active: bool = False) -> int:
    """Numbers in the adapters; `active` leaves out those of experts that a token does not visit."""
    total = 0
    for name, shape in shapes(cfg).items():
        part = _part(name)
        adapted = "dense" if part == "ffn" else part
        if name.startswith("layers.") and adapted in lora.parts and len(shape) > 1 and ".index." not in name:
            copies = math.prod(shape[:-2])
            if active and copies > 1 and isinstance(cfg.ffn, MoEConfig):
                copies = cfg.ffn.n_active
            total += copies * lora.rank * (shape[-1] + shape[-2])
    return total


def decode_flops(cfg: ModelConfig, contexts: Sequence[int]) -> float:
    """One decode step: every sequence brings one token and attends to `contexts` keys, its own included."""
    absorbed = _flops_per_pair(cfg, absorbed=True) * cfg.n_layers * sum(contexts)
    return 2.0 * (_active(cfg) + cfg.vocab_size * cfg.d_model) * len(contexts) + absorbed


def generate_flops(cfg: ModelConfig, prompt: int, new: int) -> float:
    """Prefill a prompt (logits of its last token), then decode until `new` tokens are sampled."""
    if new == 0:
        return 0.0
    contexts = range(prompt + 1, prompt + new)  # the first sampled token comes from the prefill
    return forward_flops(cfg, [prompt], n_logits=1) + decode_flops(cfg, contexts)


def flops_per_token(cfg: ModelConfig, seq_len: int, *, lora: LoraConfig | None = None) -> Flops:
    """Mean FLOPs per token of fresh sequences of `seq_len` tokens."""
    return Flops(forward_flops(cfg, [seq_len]) / seq_len, train_flops(cfg, [seq_len], lora=lora) / seq_len)


def cache_bytes_per_token(cfg: ModelConfig, bytes_per_number: int = 2, *, int8: bool = False) -> int:
    """Bytes that one token leaves in the cache, all layers together; its class, for the memory, takes eight. In `int8`
    a number of an entry takes one byte and each vector of it four more, for its scale."""
    trails = len(cfg.memory.layers) * cfg.d_model * bytes_per_number + (8 if cfg.memory.layers else 0)
    entry = cfg.attention.cache_dim * bytes_per_number
    if int8:
        entry = cfg.attention.cache_dim + 4 * sum(n for n, _ in cfg.attention.cache_parts)
    return cfg.n_layers * entry + trails


def _block(cfg: ModelConfig, layer: int, at: str) -> Shapes:
    found: Shapes = {f"{at}.attn_norm.weight": (cfg.d_model,), f"{at}.ffn_norm.weight": (cfg.d_model,)}
    found |= {f"{at}.attn.{name}": shape for name, shape in _attention(cfg, layer).items()}
    return found | {f"{at}.ffn.{name}": shape for name, shape in _ffn(cfg, layer).items()}


def _attention(cfg: ModelConfig, layer: int) -> Shapes:
    d, attn = cfg.d_model, cfg.attention
    if isinstance(attn, MLAConfig):
        n_q, n_kv = attn.n_heads * attn.qk_dim, attn.n_heads * (attn.nope_dim + attn.v_dim)
        if attn.q_rank:
            query: Shapes = {
                "q_down.weight": (attn.q_rank, d),
                "q_norm.weight": (attn.q_rank,),
                "q_up.weight": (n_q, attn.q_rank),
            }
        else:
            query = {"q.weight": (n_q, d)}
        if index := attn.indexer:
            query |= {
                "index.q_up.weight": (index.n_heads * index.dim, attn.q_rank),
                "index.k.weight": (index.dim, d),
                "index.k_norm.weight": (index.dim,),
                "index.k_norm.bias": (index.dim,),
                "index.weigh.weight": (index.n_heads, d),
            }
        if attn.bias:
            query |= {"kv_down.bias": (attn.latent_dim,), "o.bias": (d,)}
            query |= {"q_down.bias": (attn.q_rank,)} if attn.q_rank else {}
        return query | {
            "kv_down.weight": (attn.latent_dim, d),
            "kv_norm.weight": (attn.kv_rank,),
            "kv_up.weight": (n_kv, attn.kv_rank),
            "o.weight": (d, attn.n_heads * attn.v_dim),
        }
    if isinstance(attn, LightningConfig):
        width = attn.n_heads * attn.head_dim
        if layer not in attn.full_layers:
            linear: Shapes = {"qkv.weight": (3 * width, d), "gate.weight": (width, d)}
            return linear | {"out.weight": (d, width), "norm.weight": (width,)}
        attn = attn.full
    n_q, n_kv = attn.n_heads * attn.head_dim, attn.n_kv_heads * attn.head_dim
    found: Shapes = {"q.weight": (n_q, d), "k.weight": (n_kv, d), "v.weight": (n_kv, d), "o.weight": (d, n_q)}
    if attn.qkv_bias:
        found |= {"q.bias": (n_q,), "k.bias": (n_kv,), "v.bias": (n_kv,)}
    if attn.o_bias:
        found |= {"o.bias": (d,)}
    if attn.qk_norm:
        n_q, n_kv = (n_q, n_kv) if attn.norm_all_heads else (attn.head_dim, attn.head_dim)
        found |= {"q_norm.weight": (n_q,), "k_norm.weight": (n_kv,)}
    return found


def _ffn(cfg: ModelConfig, layer: int) -> Shapes:
    d, ffn = cfg.d_model, cfg.ffn
    if isinstance(ffn, DenseConfig) or not cfg.is_moe_layer(layer):
        return _swiglu(d, ffn.d_ff, cfg.ffn_bias)
    e, f = ffn.n_experts, ffn.d_expert
    found: Shapes = {"router.weight_ED": (e, d)} | ({"router.bias_E": (e,)} if ffn.biased else {})
    found |= {"gate_EFD": (e, f, d), "up_EFD": (e, f, d), "down_EDF": (e, d, f)}
    if ffn.n_shared:
        found |= {f"shared.{name}": shape for name, shape in _swiglu(d, ffn.n_shared * f, cfg.ffn_bias).items()}
    return found


def _swiglu(d_model: int, d_ff: int, bias: bool) -> Shapes:
    found: Shapes = {"gate.weight": (d_ff, d_model), "up.weight": (d_ff, d_model), "down.weight": (d_model, d_ff)}
    return found | ({"gate.bias": (d_ff,), "up.bias": (d_ff,), "down.bias": (d_model,)} if bias else {})


def _memory(cfg: ModelConfig) -> Shapes:
    """Tables are looked up, and their convolution has a few taps: only key and value are products."""
    if not cfg.memory.layers:
        return {}
    memory, d = cfg.memory, cfg.d_model
    found: Shapes = {"memory.classes_V": (cfg.vocab_size,)}
    for layer in memory.layers:
        at = f"memory.at.{layer}"
        found[f"{at}.table_MW"] = (memory.n_tables * memory.n_rows, memory.dim)
        found[f"{at}.conv_KD"] = (memory.kernel, d)
        found |= {f"{at}.{name}.weight": (d, memory.read_dim) for name in ("key", "value")}
        found |= {f"{at}.{name}_norm.weight": (d,) for name in ("query", "key", "value")}
    return found


def _part(name: str) -> str:
    """Which part of the model a tensor belongs to."""
    if name.startswith("memory."):
        return "memory"
    if name in ("embed.weight", "head.weight"):
        return name.removesuffix(".weight")
    if name.split(".")[-2].endswith("norm"):
        return "norms"
    if ".router." in name:
        return "router"
    if name.endswith(("_EFD", "_EDF")):
        return "experts"
    return "attention" if ".attn." in name else "ffn"


def _active(cfg: ModelConfig) -> int:
    """Numbers that a token is multiplied by in the blocks of the main model."""
    memory = 2 * cfg.d_model * cfg.memory.read_dim * len(cfg.memory.layers)
    return memory + sum(_active_block(cfg, layer) for layer in range(cfg.n_layers))


def _active_mtp(cfg: ModelConfig) -> int:
    return 2 * cfg.d_model * cfg.d_model + _active_block(cfg, cfg.n_layers)


def _active_block(cfg: ModelConfig, layer: int) -> int:
    """Matrices of a block; of the stacked experts only the part that a token visits."""
    matrices = sum(math.prod(shape) for shape in _attention(cfg, layer).values() if len(shape) == 2)
    for shape in _ffn(cfg, layer).values():
        if len(shape) == 2:
            matrices += math.prod(shape)
        elif len(shape) == 3 and isinstance(cfg.ffn, MoEConfig):
            matrices += cfg.ffn.n_active * math.prod(shape[1:])
    return matrices


def _flops_per_pair(cfg: ModelConfig, *, absorbed: bool) -> float:
    """FLOPs of one query with one key in one layer, all heads: scores and weighted sum; the mean over layers."""
    attn = cfg.attention
    if isinstance(attn, LightningConfig) and not absorbed:
        return 4.0 * attn.n_heads * attn.head_dim * len(attn.full_layers) / cfg.n_layers
    if not isinstance(attn, MLAConfig):
        return 2.0 * attn.n_heads * 2 * attn.head_dim
    width = attn.latent_dim + attn.kv_rank if absorbed else attn.qk_dim + attn.v_dim
    index = 2.0 * attn.indexer.n_heads * attn.indexer.dim if attn.indexer else 0.0
    return 2.0 * attn.n_heads * width + index


def _recurrent(cfg: ModelConfig) -> float:
    """FLOPs of one fresh token with the states of linear attention, all layers; with a cache they are pairs."""
    attn = cfg.attention
    if not isinstance(attn, LightningConfig):
        return 0.0
    return 4.0 * attn.n_heads * attn.head_dim**2 * (cfg.n_layers - len(attn.full_layers))
