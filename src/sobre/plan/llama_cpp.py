"""Whether llama.cpp can run a model: what its loaders take (as in llama-cpp-python 0.3.36).

Each fault says what stands in the way and what to change. The rules are those of its files src/models/*.cpp and of
what we write (models/gguf).
"""

from collections.abc import Iterator

from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig

MAX_LAYERS, MAX_EXPERTS = 512, 1024
MAX_LATENT_EPS = 1e-5
MEMORY = "nobody but sobre has n-gram memory; set memory.layers=[]"
LITE_LAYERS = (26, 27)
"""Depths that it takes for DeepSeek-V2-Lite's, whose queries are not compressed."""


def architecture(cfg: ModelConfig) -> str:
    """llama.cpp's name for this kind of model, whether or not every detail fits."""
    if isinstance(cfg.attention, MLAConfig):
        return "deepseek2"
    gqa = cfg.attention
    if isinstance(gqa, GQAConfig) and gqa.qk_norm:
        return "qwen3moe" if isinstance(cfg.ffn, MoEConfig) else "qwen3"
    square = isinstance(gqa, GQAConfig) and gqa.n_heads * gqa.head_dim == cfg.d_model
    if isinstance(gqa, GQAConfig) and gqa.qkv_bias and not gqa.o_bias and square and not cfg.rope.interleaved:
        return "qwen2"
    return "llama"


def faults(cfg: ModelConfig) -> list[str]:
    """What llama.cpp would refuse or compute otherwise; nothing where it runs the model as it is."""
    found = list(_trunk(cfg))
    if isinstance(cfg.attention, MLAConfig):
        found += _deepseek(cfg, cfg.attention)
    elif isinstance(cfg.attention, GQAConfig):
        found += _grouped(cfg, cfg.attention)
    else:
        found.append("linear attention (lightning) has no GGUF form here; gqa or mla has")
    return found


def _trunk(cfg: ModelConfig) -> Iterator[str]:
    if cfg.n_layers > MAX_LAYERS:
        yield f"n_layers={cfg.n_layers}: it takes {MAX_LAYERS} at most"
    if isinstance(cfg.ffn, MoEConfig) and cfg.ffn.n_experts > MAX_EXPERTS:
        yield f"n_experts={cfg.ffn.n_experts}: it takes {MAX_EXPERTS} at most"
    if cfg.memory.layers:
        yield "n-gram memory is a part that it does not have; serve the model with sobre, or train one without memory"
    if cfg.memory.layers:
        yield MEMORY
    if cfg.residual is not None:
        yield "scaled residual streams (MiniMax-01) have no GGUF form here"


def _deepseek(cfg: ModelConfig, mla: MLAConfig) -> Iterator[str]:
    moe = cfg.ffn if isinstance(cfg.ffn, MoEConfig) else None
    yarn = cfg.rope.yarn
    if mla.indexer:
        yield "sparse attention (DeepSeek-V3.2) has no GGUF form here; drop the indexer"
    if mla.bias:
        yield "deepseek2 has no biases in attention; set bias=false"
    if cfg.ffn_bias:
        yield "deepseek2 has no biases in feed-forward layers; set ffn_bias=false"
    if mla.q_rank and cfg.n_layers in LITE_LAYERS:
        yield f"n_layers={cfg.n_layers} means DeepSeek-V2-Lite's plain queries there; take q_rank=0 or another depth"
    if cfg.norm_eps > MAX_LATENT_EPS:
        yield f"norm_eps={cfg.norm_eps} would hold for the latents too, which have 1e-6; take {MAX_LATENT_EPS}"
    if cfg.rope.llama3:
        yield "deepseek2 knows YaRN, not Llama 3.1's rope scaling"
    if yarn and (
        yarn.table_factor not in (None, 1.0) or (yarn.table_factor is None and yarn.mscale != yarn.mscale_all_dim)
    ):
        yield f"YaRN with mscale={yarn.mscale} and mscale_all_dim={yarn.mscale_all_dim}: it takes them equal"
    if moe is None:
        return
    if moe.n_shared == 0:
        yield "deepseek2 wants a shared expert; take n_shared=1 or more"
    if moe.dense_layers:
        yield f"only the first layers may be dense, and dense_layers={moe.dense_layers} are later ones"
    if moe.n_active_groups < moe.n_groups:
        if moe.score == "softmax":
            yield "it judges a group of experts by its two best, softmax routers (V2) by the best; take n_groups=1"
        if moe.n_experts // moe.n_groups < 2:
            yield f"n_groups={moe.n_groups} leaves one expert to a group; it takes two at least"


def _grouped(cfg: ModelConfig, gqa: GQAConfig) -> Iterator[str]:
    kind, moe = architecture(cfg), cfg.ffn if isinstance(cfg.ffn, MoEConfig) else None
    if gqa.rotary_dim != gqa.head_dim:
        yield f"{kind} rotates whole heads, not {gqa.rotary_dim} of {gqa.head_dim} numbers; set rope_dim=0"
    if gqa.norm_all_heads:
        yield "a norm over all heads (MiniMax-M2) has no GGUF form here; set norm_all_heads=false"
    if kind != "llama" and cfg.rope.interleaved:
        yield f"{kind} rotates halves; set rope.interleaved=false"
    if kind != "llama" and cfg.rope.llama3:
        yield f"{kind} does not know Llama 3.1's rope scaling; take yarn"
    if kind.startswith("qwen3") and gqa.o_bias:
        yield f"{kind} has no bias on the output of attention; set o_bias=false"
    if kind != "llama" and cfg.ffn_bias:
        yield f"{kind} has no biases in feed-forward layers; set ffn_bias=false"
    if cfg.rope.yarn and cfg.rope.yarn.mscale_all_dim:
        yield f"{kind} leaves the softmax scale alone under YaRN; set mscale_all_dim=0"
    if moe is None:
        assert isinstance(cfg.ffn, DenseConfig)
        return
    if kind != "qwen3moe":
        yield "experts with gqa go as qwen3moe, which has qk_norm; or take mla"
    odd = {
        "score": (moe.score, "softmax"),
        "biased": (moe.biased, False),
        "n_shared": (moe.n_shared, 0),
        "n_groups": (moe.n_groups, 1),
        "route_scale": (moe.route_scale, 1.0),
        "norm_weights": (moe.norm_weights, True),
    }
    yield from (f"qwen3moe has {key}={wanted}, not {value}" for key, (value, wanted) in odd.items() if value != wanted)
    if moe.n_dense_layers or moe.dense_layers:
        yield "qwen3moe has no dense layers; set n_dense_layers=0 and dense_layers=()"
