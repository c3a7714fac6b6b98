"""Who will run a model of this shape once it is trained: transformers, vLLM, SGLang, llama.cpp.

The rules were read in transformers 5.24, vLLM 0.33.0 and SGLang 0.5.23; those of llama.cpp are in llama_cpp.py. A fault
keeps an engine from running the model, or from computing what we compute, and says what to change; a remark tells what
it needs or leaves out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sobre.models.config import GQAConfig, LightningConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.families.table import FAMILIES
from sobre.plan import llama_cpp
from sobre.schemas import VERSION

VLLM_LATENTS = (320, 512, 576)
"""Widths of latent and rotary key together that its common MLA kernels take; those for CPUs take the last alone."""
VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
COMMON_HEADS = (64, 128, 256)
"""Head widths that FlashInfer's kernels, the first choice of both, are built for."""
FLASH_LATENT = (512, 64)
"""Latent and rotary width of DeepSeek's own models, which the fast MLA kernels are built for."""


@dataclass(frozen=True)
class Verdict:
    """What one engine says."""

    engine: str
    form: str
    """As what it would run the model: an architecture of Hugging Face, or llama.cpp's name."""
    faults: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return not self.faults

    def lines(self) -> list[str]:
        """The verdict in words, one line for each reason."""
        said = [f"{self.engine:<14}{'yes' if self.accepted else 'no ':<5}{self.form}"]
        return said + [f"{'':<19}{reason}" for reason in (*self.faults, *self.remarks)]


def verdicts(cfg: ModelConfig, model_type: str = "") -> list[Verdict]:
    """One verdict for each engine; `model_type` is the family that the model comes from, if it does."""
    families = sorted(FAMILIES, key=lambda family: family.model_type != model_type)
    family = next((family for family in families if family.accepts(cfg)), None)
    if family is None:
        nobody = ("no open family carries this mixture of parts; mla with either feed-forward does (DeepSeek-V3)",)
        return [Verdict(engine, "", nobody) for engine in ("transformers", "vllm", "sglang", "llama.cpp")]
    form = family.architecture
    ours = (llama_cpp.MEMORY,) if cfg.memory.layers else ()
    left_out = ("the multi-token prediction module is passed over",) if cfg.n_mtp else ()
    drafts = ("the multi-token prediction module can draft",) if cfg.n_mtp else ()
    return [
        Verdict("transformers", form, ours, left_out),
        Verdict("vllm", form, tuple(_vllm(cfg)), (*_vllm_remarks(cfg, family.model_type), *drafts)),
        Verdict("sglang", form, tuple(_sglang(cfg)), (*_sglang_remarks(cfg, family.model_type), *drafts)),
        Verdict("llama.cpp", llama_cpp.architecture(cfg), tuple(llama_cpp.faults(cfg)), left_out),
    ]


def to_dict(found: dict[str, list[Verdict]]) -> dict[str, Any]:
    """The verdicts on some models as a document."""
    models = [
        {"model": name, "verdicts": [asdict(verdict) | {"accepted": verdict.accepted} for verdict in said]}
        for name, said in found.items()
    ]
    return {"schema": VERSION, "kind": "engines", "models": models}


def _both(cfg: ModelConfig) -> Iterator[str]:
    """Faults that vLLM and SGLang share."""
    if cfg.memory.layers:
        yield llama_cpp.MEMORY
    if isinstance(cfg.attention, LightningConfig):
        yield "it has no MiniMax-Text-01 (any more); gqa or mla it has"
    if isinstance(cfg.attention, MLAConfig):
        if cfg.attention.bias:
            yield "its DeepSeek has no biases in attention; set attention.bias=false"
        if cfg.norm_eps > llama_cpp.MAX_LATENT_EPS:
            yield f"it norms the latents with norm_eps={cfg.norm_eps}, which we do with 1e-6; set norm_eps=1e-6"


def _vllm(cfg: ModelConfig) -> Iterator[str]:
    yield from _both(cfg)
    mla = cfg.attention
    if not isinstance(mla, MLAConfig):
        return
    if mla.latent_dim not in VLLM_LATENTS:
        sizes = f"kv_rank={mla.kv_rank} + rope_dim={mla.rope_dim} = {mla.latent_dim}"
        yield (
            f"{sizes} is none of the latents of its MLA kernels, {', '.join(map(str, VLLM_LATENTS))}; take kv_rank=256"
            " and rope_dim=64, or 512 and 64 (on a GPU, --attention-backend TRITON_MLA takes any, slowly)"
        )
    if not cfg.rope.interleaved:
        yield "its DeepSeek rotates pairs and would answer nonsense; set rope.interleaved=true"
    if isinstance(cfg.ffn, MoEConfig) and not cfg.ffn.n_shared:
        yield "it builds a shared expert of width 0; take n_shared=1 or more"


def _vllm_remarks(cfg: ModelConfig, model_type: str) -> Iterator[str]:
    if model_type == "seed_oss":
        yield "runs through its transformers backend"
    if isinstance(cfg.attention, MLAConfig) and cfg.attention.latent_dim in VLLM_LATENTS[:-1]:
        yield f"on a CPU its latents are {VLLM_LATENTS[-1]} alone"
    if isinstance(cfg.attention, GQAConfig):
        yield from _head_remarks(cfg.attention.head_dim, VLLM_CPU_HEADS)


def _head_remarks(head_dim: int, cpu_heads: tuple[int, ...]) -> Iterator[str]:
    if head_dim % 8 or head_dim > 256:
        yield f"head_dim={head_dim} goes through Triton, not FlashAttention, which takes multiples of 8 up to 256"
    if head_dim not in cpu_heads:
        yield f"on a CPU heads are {', '.join(map(str, cpu_heads))}, and head_dim={head_dim}"


def _sglang(cfg: ModelConfig) -> Iterator[str]:
    yield from _both(cfg)
    if isinstance(cfg.attention, MLAConfig) and cfg.attention.indexer:
        mla = cfg.attention
        if (mla.kv_rank, mla.rope_dim) != FLASH_LATENT:
            yield "its sparse attention takes DeepSeek's own sizes; take kv_rank=512 and rope_dim=64"


def _sglang_remarks(cfg: ModelConfig, model_type: str) -> Iterator[str]:
    att = cfg.attention
    if model_type == "seed_oss":
        yield "runs through its transformers backend"
    if isinstance(att, MLAConfig) and not att.indexer and (att.kv_rank, att.rope_dim) != FLASH_LATENT:
        yield "start it with --attention-backend triton: the others are built for kv_rank=512 and rope_dim=64"
    if isinstance(att, GQAConfig) and att.head_dim not in COMMON_HEADS:
        yield f"start it with --attention-backend triton: FlashInfer takes heads of {', '.join(map(str, COMMON_HEADS))}"
