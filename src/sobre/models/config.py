"""What a model is: sizes and variants, in the field's words. No torch here.

Names follow DeepSeek-V3 (arXiv 2412.19437, 2.1); the Hugging Face key stands in brackets where it differs.
The unions `Attention` and `FeedForward` are closed: the recipe chooses a variant by `kind`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from sobre.config.base import by_kind, config
from sobre.errors import ConfigError

BLOCK = 16
"""Tokens of one block of the paged cache."""


@config
class YarnConfig:
    """Context extension by YaRN (arXiv 2309.00071), as DeepSeek-V3 applies it."""

    factor: float = 40.0
    """New context over the original one."""
    original_len: int = 4096
    """Context the model was trained at [original_max_position_embeddings]."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    """The softmax scale is multiplied by (0.1 * mscale_all_dim * ln(factor) + 1) squared."""
    table_factor: float | None = None
    """Factor on cosines and sines [attention_factor]; None takes it from the two mscales."""


@config
class Llama3RopeConfig:
    """Context extension of Llama 3.1 (arXiv 2407.21783, 3.2, and its released code): slow frequencies are divided."""

    factor: float = 8.0
    low_factor: float = 1.0
    """Wavelengths above original_len / low_factor are divided by `factor` [low_freq_factor]."""
    high_factor: float = 4.0
    """Wavelengths below original_len / high_factor are kept; between, a blend [high_freq_factor]."""
    original_len: int = 8192
    """Context the model was trained at [original_max_position_embeddings]."""


@config
class RopeConfig:
    """Rotary position embedding."""

    theta: float = 10_000.0
    interleaved: bool = True
    """Rotate the pairs (x0, x1), (x2, x3), ...; False rotates halves, as Llama and Qwen do."""
    yarn: YarnConfig | None = None
    llama3: Llama3RopeConfig | None = None

    def __post_init__(self) -> None:
        if self.yarn and self.llama3:
            raise ConfigError("rope.yarn and rope.llama3 exclude each other; keep one")


@config
class IndexerConfig:
    """Sparse attention of DeepSeek-V3.2 (arXiv 2512.02556, 2.1): a query sees the keys that an indexer chooses."""

    n_heads: int = 64
    """Index heads [index_n_heads]."""
    dim: int = 128
    """Index width [index_head_dim]."""
    n_keys: int = 2048
    """Keys that a query sees [index_topk]."""


def attended(lengths: Sequence[int], starts: Sequence[int]) -> int:
    """Pairs of a query and a key in causal attention of `lengths` new tokens after `starts` cached ones."""
    return sum(new * start + new * (new + 1) // 2 for new, start in zip(lengths, starts, strict=True))


@config
class MLAConfig:
    """Multi-head latent attention: all heads share one compressed latent per token."""

    kind: Literal["mla"] = "mla"
    n_heads: int = 4
    q_rank: int = 0
    """Width of the compressed query [q_lora_rank]; 0 projects the query directly."""
    kv_rank: int = 64
    """Width of the cached latent [kv_lora_rank]."""
    nope_dim: int = 32
    """Head width without position [qk_nope_head_dim]."""
    rope_dim: int = 16
    """Head width with rotary position, one key shared by all heads [qk_rope_head_dim]."""
    v_dim: int = 32
    """Head width of the values [v_head_dim]."""
    bias: bool = False
    """Biases on the two projections down and on the output [attention_bias]."""
    indexer: IndexerConfig | None = None
    """Sparse attention; needs a compressed query."""

    def __post_init__(self) -> None:
        if self.indexer and not (self.q_rank and self.rope_dim <= self.indexer.dim):
            raise ConfigError("the indexer needs q_rank > 0 and an index width of rope_dim at least")
        if self.rope_dim % 2:
            raise ConfigError(f"rope_dim={self.rope_dim} must be even; the nearest: {self.rope_dim + 1}")

    @property
    def qk_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def rotary_dim(self) -> int:
        return self.rope_dim

    @property
    def latent_dim(self) -> int:
        """The latent and the rotary key."""
        return self.kv_rank + self.rope_dim

    @property
    def cache_dim(self) -> int:
        """Cached numbers per token and layer: latent and rotary key, and the index key of sparse attention."""
        return self.latent_dim + (self.indexer.dim if self.indexer else 0)

    @property
    def cache_parts(self) -> tuple[tuple[int, int], ...]:
        """The same as (how many, how wide) vectors, each of which has its own scale in an int8 cache."""
        index = ((1, self.indexer.dim),) if self.indexer else ()
        return ((1, self.kv_rank), (1, self.rope_dim), *index)

    def widens(self, lengths: Sequence[int], starts: Sequence[int]) -> bool:
        """Whether a step of `lengths` new tokens after `starts` cached ones multiplies less when it rebuilds the keys
        and values of the cached latents than when all heads attend to the latents themselves (models/mla.py)."""
        if self.indexer:
            return False
        saved = self.latent_dim + self.kv_rank - self.qk_dim - self.v_dim
        return attended(lengths, starts) * saved > sum(starts) * self.kv_rank * (self.nope_dim + self.v_dim)


@config
class GQAConfig:
    """Grouped-query attention, as in Llama and Qwen."""

    kind: Literal["gqa"] = "gqa"
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    qk_norm: bool = False
    """RMSNorm on every query and key head (Qwen3)."""
    norm_all_heads: bool = False
    """That norm runs over all heads together (MiniMax-M2)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections (Qwen2)."""
    o_bias: bool = False
    """A bias on the output projection."""
    rope_dim: int = 0
    """First numbers of a head that are rotated [partial_rotary_factor * head_dim]; 0: all of them."""

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even; the nearest: {self.head_dim + 1}")
        if self.rope_dim % 2 or not 0 <= self.rope_dim <= self.head_dim:
            raise ConfigError(f"rope_dim={self.rope_dim} must be even and lie in 0..head_dim={self.head_dim}")
        if self.norm_all_heads and not self.qk_norm:
            raise ConfigError("norm_all_heads=true needs qk_norm=true")

    @property
    def rotary_dim(self) -> int:
        return self.rope_dim or self.head_dim

    @property
    def cache_dim(self) -> int:
        """Cached numbers per token and layer: keys and values of every group."""
        return 2 * self.n_kv_heads * self.head_dim

    @property
    def cache_parts(self) -> tuple[tuple[int, int], ...]:
        """The same as (how many, how wide) vectors, each of which has its own scale in an int8 cache."""
        return ((2 * self.n_kv_heads, self.head_dim),)


@config
class LightningConfig:
    """MiniMax-01 (arXiv 2501.08313): linear attention with decay, and grouped-query attention in some layers."""

    kind: Literal["lightning"] = "lightning"
    n_heads: int = 4
    n_kv_heads: int = 2
    """Key/value heads of the layers with grouped-query attention; lightning layers have as many as query heads."""
    head_dim: int = 32
    full_layers: tuple[int, ...] = ()
    """Layers with grouped-query attention, by number [layer_types]."""
    block: int = 256
    """Positions of a fresh sequence that are computed at once [block_size]: it moves the rounding alone."""

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ConfigError(f"block={self.block} must be at least 1 position")

    @property
    def full(self) -> GQAConfig:
        """The attention of `full_layers`."""
        return GQAConfig(n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim)

    @property
    def rotary_dim(self) -> int:
        return self.head_dim

    @property
    def cache_dim(self) -> int:
        """Cached numbers per token and layer: keys and values of every head."""
        return 2 * self.n_heads * self.head_dim

    @property
    def cache_parts(self) -> tuple[tuple[int, int], ...]:
        """The same as (how many, how wide) vectors, each of which has its own scale in an int8 cache."""
        return ((2 * self.n_heads, self.head_dim),)


@config
class DenseConfig:
    """SwiGLU feed-forward."""

    kind: Literal["dense"] = "dense"
    d_ff: int = 512
    """Inner width [intermediate_size]."""


@config
class MoEConfig:
    """DeepSeekMoE: shared experts plus A of E routed ones, balanced by a bias (arXiv 2412.19437, 2.1.2).

    `score="softmax"` and `biased=False` make the routers of DeepSeek-V2, Qwen3-MoE and MiniMax-01.
    """

    kind: Literal["moe"] = "moe"
    n_experts: int = 16
    """Routed experts per layer [n_routed_experts]."""
    n_active: int = 2
    """Routed experts each token visits [num_experts_per_tok]."""
    d_expert: int = 128
    """Inner width of one expert [moe_intermediate_size]."""
    n_shared: int = 1
    """Shared experts, stored as one of width n_shared * d_expert [n_shared_experts]."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """How affinities become scores. A group is judged by its two best experts (sigmoid) or its best (softmax)."""
    biased: bool = True
    """A bias steers the choice [e_score_correction_bias]."""
    n_groups: int = 1
    """Groups of experts (nodes) [n_group]."""
    n_active_groups: int = 1
    """Groups a token may visit [topk_group]."""
    route_scale: float = 1.0
    """Factor on the routed weights [routed_scaling_factor]."""
    norm_weights: bool = True
    """Make the A weights sum to 1 before scaling [norm_topk_prob]."""
    n_dense_layers: int = 1
    """First layers that are dense [first_k_dense_replace]."""
    dense_layers: tuple[int, ...] = ()
    """Later layers that are dense, by number."""
    d_ff: int = 512
    """Inner width of those dense layers [intermediate_size]."""
    balance_alpha: float = 1e-4
    """Weight of the sequence-wise balance loss."""
    bias_speed: float = 1e-3
    """How far the bias moves after each optimizer step (gamma); 0 freezes it."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_active <= self.n_experts:
            raise ConfigError(f"n_active={self.n_active} must lie in 1..n_experts={self.n_experts}")
        if self.n_experts % self.n_groups:
            raise ConfigError(f"n_experts={self.n_experts} must be a multiple of n_groups={self.n_groups}")
        if not 1 <= self.n_active_groups <= self.n_groups:
            raise ConfigError(f"n_active_groups={self.n_active_groups} must lie in 1..n_groups={self.n_groups}")
        reachable = self.n_active_groups * (self.n_experts // self.n_groups)
        if self.n_active > reachable:
            raise ConfigError(f"n_active={self.n_active} exceeds the {reachable} experts of the active groups")
        if self.bias_speed and not self.biased:
            raise ConfigError(f"bias_speed={self.bias_speed} moves a bias that biased=false takes away; set it to 0")


Attention = Annotated[MLAConfig | GQAConfig | LightningConfig, by_kind]
FeedForward = Annotated[DenseConfig | MoEConfig, by_kind]


@config
class ResidualConfig:
    """Residual streams of MiniMax-01: x = norm(x), then alpha x + beta layer(x)."""

    attn_alpha: float = 1.0
    """[full_attn_alpha_factor]; the linear layers have their own pair."""
    attn_beta: float = 1.0
    linear_alpha: float = 1.0
    linear_beta: float = 1.0
    ffn_alpha: float = 1.0
    ffn_beta: float = 1.0


AdaptedPart = Literal["attention", "dense", "experts"]


@config
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): small matrices beside the weights, which stay as they are."""

    rank: int = 0
    """Rank of the adapters [r]; 0 trains all weights."""
    alpha: float = 16.0
    """What an adapter adds is multiplied by alpha / rank [lora_alpha]."""
    rank_stabilised: bool = False
    """Multiplied by alpha / sqrt(rank) instead (arXiv 2312.03732) [use_rslora]."""
    parts: tuple[AdaptedPart, ...] = ("attention", "dense", "experts")
    """What is adapted, where the model has it: the projections of attention; dense layers and shared experts; routed
    experts. Router, norms, embedding, head and the MTP module stay as they are."""
    merged: bool = False
    """Write the merged model too, into the folder `merged` beside the adapter."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ConfigError(f"lora.rank={self.rank} must be 0 or more, and lora.alpha={self.alpha} above 0")
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ConfigError(f"lora.parts={list(self.parts)} must name one part or more, each once")

    @property
    def scale(self) -> float:
        """Factor on what an adapter adds."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


@config
class MemoryConfig:
    """N-gram memory after DeepSeek's Engram (arXiv 2601.07372): tables that the last tokens name a row of."""

    layers: tuple[int, ...] = ()
    """Layers before whose attention a memory is read, by number; each has tables of its own. None: no memory."""
    orders: tuple[int, ...] = (2, 3)
    """How many last tokens name a row, one entry for each kind of n-gram."""
    n_heads: int = 2
    """Tables for each order: n-grams that share a row in one seldom share it in another."""
    n_rows: int = 65_536
    """Rows of each table."""
    dim: int = 64
    """Width of a row."""
    kernel: int = 4
    """Taps of the short convolution over what was read."""

    def __post_init__(self) -> None:
        if not self.orders or min(self.orders) < 1:
            raise ConfigError(f"memory.orders={self.orders} must be at least one number, each at least 1")
        for key in ("n_heads", "n_rows", "dim", "kernel"):
            if getattr(self, key) < 1:
                raise ConfigError(f"memory.{key}={getattr(self, key)} must be at least 1")
        if self.n_rows >= 2**31 - 1:
            raise ConfigError(f"memory.n_rows={self.n_rows:,} must be below 2^31 - 1, the prime that rows are found by")

    @property
    def n_tables(self) -> int:
        """Tables of one layer."""
        return len(self.orders) * self.n_heads

    @property
    def n_table_numbers(self) -> int:
        """Numbers in the tables of all layers."""
        return len(self.layers) * self.n_tables * self.n_rows * self.dim

    @property
    def read_dim(self) -> int:
        """Numbers that a token reads at one layer."""
        return self.n_tables * self.dim


@config
class ModelConfig:
    """One decoder. `vocab_size=0` and `max_len=0` mean: taken from the tokenizer and the data of the run."""

    vocab_size: int = 0
    d_model: int = 128
    n_layers: int = 4
    attention: Attention = MLAConfig()
    ffn: FeedForward = MoEConfig()
    rope: RopeConfig = RopeConfig()
    residual: ResidualConfig | None = None
    """None: x + layer(norm(x))."""
    memory: MemoryConfig = MemoryConfig()
    """N-gram tables at some layers; no engine but ours reads them."""
    max_len: int = 0
    """Longest sequence, prompt and answer [max_position_embeddings]."""
    norm_eps: float = 1e-6
    ffn_bias: bool = False
    """Biases in dense layers and shared experts [mlp_bias]."""
    tied: bool = False
    """Output head shares the embedding [tie_word_embeddings]."""
    n_mtp: int = 0
    """Multi-token prediction modules (0 or 1) [num_nextn_predict_layers]."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (0.006 at width 7168 in V3)."""

    def __post_init__(self) -> None:
        if self.n_mtp not in (0, 1):
            raise ConfigError(f"n_mtp={self.n_mtp} must be 0 or 1")
        if isinstance(self.ffn, MoEConfig) and not 0 <= self.ffn.n_dense_layers <= self.n_layers:
            raise ConfigError(f"n_dense_layers={self.ffn.n_dense_layers} must lie in 0..n_layers={self.n_layers}")
        named = self.memory.layers
        if len(set(named)) < len(named) or any(not 0 <= layer < self.n_layers for layer in named):
            raise ConfigError(f"memory.layers={list(named)} must lie in 0..{self.n_layers - 1}, each once")

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` routes; the MTP layer counts as layer n_layers."""
        moe = self.ffn
        return isinstance(moe, MoEConfig) and layer >= moe.n_dense_layers and layer not in moe.dense_layers

    @property
    def n_moe_layers(self) -> int:
        """Routing layers of the main model, MTP excluded."""
        return sum(self.is_moe_layer(layer) for layer in range(self.n_layers))
