"""From a rung of the ladder to a model: the recipe says what kind, the rung says how wide and how deep.

Head width is 32 (64 from width 512 on), and half as much rotary in latent attention; the cached latent is half the
width; what a token visits in a feed-forward layer is 2.5 widths with experts (shared and active together), 8/3 without.
Numbers of experts, of active ones and of groups are the recipe's own. So are the tables of the n-gram memory; it lies
as deep in the model, by share of its layers, as in the recipe's.
"""

from dataclasses import replace
from math import gcd

from sobre.errors import ConfigError
from sobre.models.config import Attention, DenseConfig, LightningConfig, MemoryConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.plan.rules import Rung

WIDTH_UNIT = 32
"""Inner widths are multiples of this, so that matrix products fill their tiles."""


def at_rung(kind: ModelConfig, rung: Rung) -> ModelConfig:
    """The model of `kind` with the sizes of the rung."""
    d = rung.d_model
    return replace(
        kind,
        d_model=d,
        n_layers=rung.n_layers,
        attention=_attention(kind.attention, d),
        ffn=_ffn(kind, rung),
        memory=_memory(kind, rung.n_layers),
    )


def _attention(kind: Attention, d: int) -> Attention:
    head = 64 if d >= 512 else 32
    n_heads = d // head
    if isinstance(kind, MLAConfig):
        q_rank = _units(d / 2) if kind.q_rank else 0
        return replace(
            kind, n_heads=n_heads, q_rank=q_rank, kv_rank=d // 2, nope_dim=head, rope_dim=head // 2, v_dim=head
        )
    if isinstance(kind, LightningConfig):
        raise ConfigError("the ladder has no rung for lightning attention; give the model's sizes yourself")
    groups = max(1, n_heads * kind.n_kv_heads // kind.n_heads)
    return replace(kind, n_heads=n_heads, n_kv_heads=gcd(n_heads, groups), head_dim=head)


def _ffn(kind: ModelConfig, rung: Rung) -> DenseConfig | MoEConfig:
    if isinstance(kind.ffn, DenseConfig):
        return replace(kind.ffn, d_ff=_units(rung.d_model * 8 / 3))
    visited = kind.ffn.n_active + kind.ffn.n_shared
    return replace(
        kind.ffn,
        d_expert=_units(rung.d_model * 2.5 / visited),
        d_ff=_units(rung.d_model * 2.5),
        n_dense_layers=min(kind.ffn.n_dense_layers, rung.n_layers - 1),
    )


def _memory(kind: ModelConfig, n_layers: int) -> MemoryConfig:
    """The layers that lie as deep; two that fall together in a shallow model are one."""
    deep = dict.fromkeys(layer * n_layers // kind.n_layers for layer in kind.memory.layers)
    return replace(kind.memory, layers=tuple(deep))


def _units(width: float) -> int:
    """The nearest multiple of WIDTH_UNIT, at least one."""
    return max(1, round(width / WIDTH_UNIT)) * WIDTH_UNIT
