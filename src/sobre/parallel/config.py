"""How a run is divided over its processes. No torch here."""

from collections.abc import Sequence
from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.models.config import DenseConfig, GQAConfig, LightningConfig, MLAConfig, ModelConfig, MoEConfig

Schedule = Literal["1f1b", "interleaved", "zero-bubble", "zbv", "dualpipev"]


@config
class ParallelConfig:
    """Sizes of the layout; what is left over of the processes are copies. All ones: every process holds the model.

    `pipeline` x `tensor` processes hold the model once between them; whoever holds the same part of it is a learner of
    that part. `shards`, `experts` and `context` each arrange the learners.
    """

    shards: int = 1
    """Processes over which weights, gradients and optimizer are divided (FSDP2); 0 is all of them. With fewer there are
    several copies of the divided model, and their gradients are summed (hybrid)."""
    zero: Literal[1, 2, 3] = 3
    """What of a shard is put together only for as long as it is needed: at 3 the weights of a layer, for each of its
    passes; at 2 they stay from the forward pass to the backward; at 1 the gradients stay whole too, until the last
    micro-batch of a step."""
    experts: int = 1
    """Processes over which the experts of a layer are divided; tokens travel to them (all-to-all)."""
    dispatch: Literal["auto", "all-to-all", "deep-ep"] = "auto"
    """How tokens travel to their experts: by torch's all-to-all, or by DeepEP's kernels (parallel/deep_ep.py), which
    auto takes where the package is installed and can."""

    tensor: int = 1
    """Processes over which the heads and the inner width of every layer of a dense model are divided; neighbours, since
    they sum hidden states twice in each layer (Megatron-LM, arXiv 1909.08053)."""
    pipeline: int = 1
    """Processes over which the layers are divided, one after the other; embedding and MTP stand at its ends."""
    schedule: Schedule = "1f1b"
    """In which order a pipeline takes the micro-batches of a step. In all but 1f1b a process has two stages."""
    context: int = 1
    """Processes over which the tokens of each sequence are divided; each sees the keys of all. For long sequences."""

    timeout_s: float = 1800.0
    """How long a process waits for another inside a step. Then the run fails, says who is missing, and torchrun may
    start it anew."""

    def __post_init__(self) -> None:
        if self.shards < 0:
            raise ConfigError(f"shards={self.shards} must be 0 (all processes) or more")
        for name in ("experts", "tensor", "pipeline", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.zero != 3 and self.shards == 1:
            raise ConfigError(
                f"zero={self.zero} says what of a shard stays whole, and shards=1 divides nothing; it fits: zero 3,"
                " or shards above 1 (0 for all processes)"
            )
        if self.schedule != "1f1b" and self.pipeline == 1:
            raise ConfigError(
                f"schedule={self.schedule} orders the micro-batches of a pipeline, and pipeline=1 is none; it fits:"
                " 1f1b, or pipeline above 1"
            )
        if self.dispatch == "deep-ep" and self.experts == 1:
            raise ConfigError(
                "dispatch=deep-ep needs experts above 1: with all experts in one process no token travels"
            )
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be above 0")

    @property
    def flags(self) -> str:
        """What to type for this layout; nothing for the default."""
        own, usual = vars(self), vars(ParallelConfig())
        return "".join(f" --parallel.{name} {own[name]}" for name in own if own[name] != usual[name])

    @property
    def is_divided(self) -> bool:
        """Whether any process holds less than the whole model."""
        return self.shards != 1 or max(self.experts, self.tensor, self.pipeline) > 1

    def learners_of(self, n_processes: int) -> int:
        """How many processes hold the same part of the model, if it is divided over pipeline and tensor alone."""
        return n_processes // (self.pipeline * self.tensor)

    def sharers_of(self, n_processes: int) -> int:
        """How many parts a micro-batch is shared out in; the processes of a context have one together."""
        return self.learners_of(n_processes) // self.context

    def shards_of(self, n_processes: int) -> int:
        """How many shards a run of so many processes has."""
        return self.shards or self.learners_of(n_processes)

    def check(self, n_processes: int) -> None:
        """Refuse a layout that so many processes cannot form."""
        beside = self.pipeline * self.tensor
        if n_processes % beside:
            raise ConfigError(
                f"parallel.pipeline={self.pipeline} x tensor={self.tensor} does not divide the {n_processes} processes"
                f" of this run; the product fits: {_divisors(n_processes)}"
            )
        learners = self.learners_of(n_processes)
        whom = f"{n_processes} processes of this run"
        if beside > 1:
            whom = f"{learners} processes of {n_processes} that are left beside pipeline x tensor = {beside}"
        if self.pipeline > 1 and self.shards_of(n_processes) > 1 and self.zero != 1:
            raise ConfigError(
                f"parallel.zero={self.zero} with pipeline={self.pipeline}: the weights of a stage stay together while"
                " micro-batches come and go; it fits: 1"
            )
        if self.pipeline > 1 and self.context > 1:
            raise ConfigError(
                f"parallel.context={self.context} with pipeline={self.pipeline}: what travels through a pipeline is"
                " filled up to one length, and pieces of sequences are not; one of the two fits: 1"
            )
        for name, size in (("shards", self.shards or 1), ("experts", self.experts), ("context", self.context)):
            if learners % size:
                raise ConfigError(f"parallel.{name}={size} does not divide the {whom}; it fits: {_divisors(learners)}")

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a layout that a model cannot take."""
        n_experts = model.ffn.n_experts if isinstance(model.ffn, MoEConfig) else 0
        if self.experts > 1 and not n_experts:
            raise ConfigError(f"parallel.experts={self.experts}: the model is dense and has none to divide; it fits: 1")
        if self.experts > 1 and n_experts % self.experts:
            raise ConfigError(
                f"parallel.experts={self.experts} does not divide the {n_experts} experts of a layer evenly"
            )
        if self.tensor > 1:
            self._check_tensor(model)
        if self.context > 1:
            self._check_context(model)
        if self.pipeline > 1 and model.n_layers + model.n_mtp < self.n_stages:
            raise ConfigError(
                f"parallel.pipeline={self.pipeline} with schedule={self.schedule} cuts the model into {self.n_stages}"
                f" stages, and it has {model.n_layers} layers and {model.n_mtp} of MTP"
            )

    def check_stages(self, stages: Sequence[str], n_processes: int) -> None:
        """Refuse a stage that runs in one process, in several."""
        if "dpo" in stages and n_processes > 1:
            raise ConfigError(
                "dpo runs in one process, where both answers of a pair meet, and this run has"
                f" {n_processes}{self.flags}: leave it out of --stages here, and run"
                " `sobre dpo --model FOLDER` in one process behind"
            )

    @property
    def n_stages(self) -> int:
        """Parts that a pipeline cuts the layers into: one for each process in 1F1B, else two."""
        return self.pipeline * (1 if self.schedule == "1f1b" or self.pipeline == 1 else 2)

    def _check_context(self, model: ModelConfig) -> None:
        what, attention = f"parallel.context={self.context}", model.attention
        if isinstance(attention, LightningConfig):
            raise ConfigError(f"{what}: lightning attention reads a sequence from its beginning; it fits: 1")
        if isinstance(attention, MLAConfig) and attention.indexer:
            raise ConfigError(f"{what}: sparse attention chooses among the keys of whole sequences; it fits: 1")
        if model.memory.layers:
            raise ConfigError(f"{what}: memory looks at the tokens before each, in another process; it fits: 1")

    def _check_tensor(self, model: ModelConfig) -> None:
        what, attention, ffn = f"parallel.tensor={self.tensor}", model.attention, model.ffn
        if not isinstance(attention, GQAConfig):
            raise ConfigError(
                f"{what} divides the heads of grouped-query attention, and this is {attention.kind}; it fits: 1"
                " (shards divide any model)"
            )
        if not isinstance(ffn, DenseConfig):
            raise ConfigError(f"{what} divides dense layers, and this model has experts; take parallel.experts instead")
        if attention.norm_all_heads:
            raise ConfigError(f"{what}: norm_all_heads=true needs all heads in one place; it fits: 1")
        for name, size in (
            ("n_heads", attention.n_heads),
            ("n_kv_heads", attention.n_kv_heads),
            ("d_ff", ffn.d_ff),
        ):
            if size % self.tensor:
                raise ConfigError(f"{what} does not divide {name}={size} evenly")


def _divisors(size: int) -> str:
    return ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
