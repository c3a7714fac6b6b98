"""Settings of reinforcement learning. No torch here.

The union `Algorithm` is closed and chosen by one key of the recipe: `algorithm.kind`.
"""

import re
from typing import Annotated, ClassVar, Literal

from sobre.config.base import by_kind, config
from sobre.errors import ConfigError
from sobre.tasks.config import check_difficulty
from sobre.train.config import Recompute

Advantage = Literal["centred", "standardised", "leave_one_out"]
"""How rewards of a group become advantages (`rl.advantage`)."""
ToolName = Literal["calculator", "python"]
MeanOver = Literal["tokens", "answers", "limit"]
"""What the loss is a mean over: all tokens; answers, each the mean of its tokens; or answers times max_tokens."""


def _check_clip(low: float, high: float) -> None:
    if not 0 < low <= 1 or not low <= high:
        raise ConfigError(f"a clip from {low} below to {high} above must satisfy 0 < low <= 1 and low <= high")


def _check_at_least(cfg: object, **floors: float) -> None:
    for name, floor in floors.items():
        if not getattr(cfg, name) >= floor:
            raise ConfigError(f"{name}={getattr(cfg, name)} must be at least {floor}")


def _check_stragglers(cfg: "RLConfig") -> None:
    """What goes on after an update must be one sequence of this process's engine, and learned from in one update."""
    clash = {
        f"samplers.workers={cfg.samplers.workers} (they have samplers.staleness)": cfg.samplers.workers > 0,
        f"samplers.urls={list(cfg.samplers.urls)} (they have samplers.staleness)": bool(cfg.samplers.urls),
        f"tools={list(cfg.tools)}": bool(cfg.tools),
        f"n_minibatches={cfg.n_minibatches}": cfg.n_minibatches > 1,
        f"n_epochs={cfg.n_epochs}": cfg.n_epochs > 1,
    }
    if any(clash.values()):
        told = ", ".join(what for what, is_so in clash.items() if is_so)
        raise ConfigError(
            f"stragglers.groups={cfg.stragglers.groups} does not go with {told}; set it to 0 or leave that"
        )


def _check_servers(cfg: "RLConfig") -> None:
    """Another engine computes other log-probabilities, and tells neither experts nor what it chose from."""
    if not cfg.max_correction:
        raise ConfigError(
            "samplers.urls needs max_correction, say 2: the log-probabilities of another engine differ from the"
            " learner's, and truncated importance sampling accounts for it"
        )
    if cfg.is_filtered:
        raise ConfigError(
            f"samplers.urls with top_p={cfg.top_p}, top_k={cfg.top_k}: servers do not say what they chose from; 1 and 0"
        )
    if cfg.replay_routes == "on":
        raise ConfigError("samplers.urls with replay_routes=on: servers do not tell the experts; auto or off")


@config
class GRPOConfig:
    """GRPO as it is run today: advantage r - mean, one mean over all tokens, clip-higher, flat groups replaced."""

    advantage: ClassVar[Advantage] = "centred"
    mean_over: ClassVar[MeanOver] = "tokens"

    kind: Literal["grpo"] = "grpo"
    clip_low: float = 0.2
    """The ratio of a bad token counts down to 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio of a good token counts up to 1 + clip_high (DAPO's clip-higher leaves room for rare tokens)."""
    kl: float = 0.0
    """Weight of the KL to the model that the stage started from, times the ratio (DeepSeek-V3.2); 0 keeps no copy."""
    refill_rounds: int = 1
    """How often groups without variance are replaced by new problems before the step goes on with fewer."""

    def __post_init__(self) -> None:
        _check_clip(self.clip_low, self.clip_high)
        _check_at_least(self, kl=0, refill_rounds=0)


@config
class PublishedConfig:
    """GRPO as published (DeepSeekMath, R1): (r - mean) / std, a mean for each response, one clip, k3 KL, no refill."""

    advantage: ClassVar[Advantage] = "standardised"
    mean_over: ClassVar[MeanOver] = "answers"

    kind: Literal["grpo_published"] = "grpo_published"
    clip: float = 0.2
    """The ratio counts within 1 - clip .. 1 + clip (R1's first stage used 10)."""
    kl: float = 0.001
    """Weight of the KL to the model that the stage started from; 0 keeps no copy."""

    def __post_init__(self) -> None:
        _check_clip(min(self.clip, 1.0), self.clip)
        _check_at_least(self, kl=0)


@config
class DrGRPOConfig:
    """Dr. GRPO (arXiv 2503.20783): no division by the standard deviation, nor by the length, but by a constant."""

    advantage: ClassVar[Advantage] = "centred"
    mean_over: ClassVar[MeanOver] = "limit"

    kind: Literal["dr_grpo"] = "dr_grpo"
    clip: float = 0.2
    kl: float = 0.0
    """Weight of the k3 KL to the model that the stage started from; 0 keeps no copy."""

    def __post_init__(self) -> None:
        _check_clip(min(self.clip, 1.0), self.clip)
        _check_at_least(self, kl=0)


@config
class DAPOConfig:
    """DAPO (arXiv 2503.14476): clip-higher, flat groups replaced, a mean over tokens, a soft penalty near the limit."""

    advantage: ClassVar[Advantage] = "standardised"
    mean_over: ClassVar[MeanOver] = "tokens"
    kl: ClassVar[float] = 0.0

    kind: Literal["dapo"] = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.28
    refill_rounds: int = 1
    """How often groups without variance are replaced by new problems (dynamic sampling)."""
    overlong_cache: int = 0
    """Tokens before max_tokens over which the reward falls by up to 1 (the paper: 4,096 of 20,480); 0 leaves it out."""

    def __post_init__(self) -> None:
        _check_clip(self.clip_low, self.clip_high)
        _check_at_least(self, refill_rounds=0, overlong_cache=0)


@config
class GSPOConfig:
    """GSPO (arXiv 2507.18071): one ratio for an answer, the geometric mean of its tokens' ratios; tiny clips."""

    advantage: ClassVar[Advantage] = "standardised"
    mean_over: ClassVar[MeanOver] = "answers"
    kl: ClassVar[float] = 0.0

    kind: Literal["gspo"] = "gspo"
    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        _check_clip(self.clip_low, self.clip_high)


@config
class CISPOConfig:
    """CISPO (MiniMax-M1, arXiv 2506.13585): the ratio is a capped weight; no token ever loses its gradient."""

    advantage: ClassVar[Advantage] = "standardised"
    mean_over: ClassVar[MeanOver] = "tokens"
    kl: ClassVar[float] = 0.0

    kind: Literal["cispo"] = "cispo"
    max_ratio: float = 5.0
    """Largest weight of a token (the paper's 1 + epsilon_high, whose value it does not give)."""

    def __post_init__(self) -> None:
        _check_at_least(self, max_ratio=1)


@config
class RLOOConfig:
    """RLOO (arXiv 2402.14740): the others' mean reward is the baseline, a whole answer is one action."""

    advantage: ClassVar[Advantage] = "leave_one_out"
    mean_over: ClassVar[MeanOver] = "answers"
    kl: ClassVar[float] = 0.0

    kind: Literal["rloo"] = "rloo"
    clip: float = 0.2
    """The probability ratio of the whole answer counts within 1 - clip .. 1 + clip."""

    def __post_init__(self) -> None:
        _check_clip(min(self.clip, 1.0), self.clip)


@config
class DeepSeekV32Config:
    """DeepSeek-V3.2 (arXiv 2512.02556, 3.1): unbiased KL, and bad answers that drifted too far are left out.

    Its other changes hold for every objective: the routes of the sampler in training (`rl.replay_routes`), and the
    trainer's probabilities over the tokens that top_p and top_k left the sampler (`rl.top_p`, `rl.top_k`).
    """

    advantage: ClassVar[Advantage] = "centred"
    mean_over: ClassVar[MeanOver] = "answers"

    kind: Literal["deepseek_v32"] = "deepseek_v32"
    clip: float = 0.2
    kl: float = 0.001
    """Weight of the KL to the model that the stage started from, times the ratio; 0 keeps no copy."""
    max_drift: float = 0.5
    """Nats per token by which an answer below its group's mean may have become rarer before it stops counting."""

    def __post_init__(self) -> None:
        _check_clip(min(self.clip, 1.0), self.clip)
        _check_at_least(self, kl=0)
        if not self.max_drift > 0:
            raise ConfigError(f"max_drift={self.max_drift} must lie above 0")


Algorithm = Annotated[
    GRPOConfig
    | PublishedConfig
    | DrGRPOConfig
    | DAPOConfig
    | GSPOConfig
    | CISPOConfig
    | RLOOConfig
    | DeepSeekV32Config,
    by_kind,
]


@config
class CurriculumConfig:
    """Which (task, difficulty) the next problems come from, decided by the pass rates so far."""

    enabled: bool = True
    """False draws every task and difficulty equally often."""
    difficulty: tuple[int, int] = (1, 5)
    """Lowest and highest rung of the ladder."""
    low: float = 0.2
    """Below this pass rate a difficulty is too hard to learn much from."""
    high: float = 0.8
    """Above this pass rate it is too easy."""
    memory: float = 0.8
    """Weight of the past in the running pass rate, for each group seen."""
    explore: float = 0.1
    """Share of problems drawn from every task and difficulty equally, so that none is forgotten."""

    def __post_init__(self) -> None:
        check_difficulty("rl.curriculum.difficulty", *self.difficulty)
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(f"low={self.low} and high={self.high} must satisfy 0 <= low < high <= 1")
        if not 0 <= self.memory < 1:
            raise ConfigError(f"memory={self.memory} must lie in 0..1, 1 excluded (nothing would be learned)")
        if not 0 <= self.explore <= 1:
            raise ConfigError(f"explore={self.explore} must lie in 0..1")


@config
class GeneralConfig:
    """Questions without a right answer among the problems; a judge grades what is said, by rubrics (R1, 2.3.4)."""

    files: tuple[str, ...] = ()
    """Files or folders of .jsonl: {"prompt": text, "rubric": text}."""
    judge: str = ""
    """Who grades: an earlier stage of this run, a model's folder or Hub id, or the URL (up to /v1) of a service."""
    model_name: str = ""
    """The judge's name at the service."""
    key_env: str = ""
    """Environment variable that holds the key of the service."""
    share: float = 0.25
    """Of the problems of a step."""
    weight: float = 1.0
    """What the best grade earns; a right answer to a problem earns 1."""
    judge_tokens: int = 256
    """Longest reply of the judge."""

    def __post_init__(self) -> None:
        if bool(self.files) != bool(self.judge):
            raise ConfigError("general questions need both: general.files and a judge (general.judge)")
        if "://" in self.judge and not self.model_name:
            raise ConfigError(f"general.judge={self.judge} needs general.model_name, the model's name there")
        if not 0 < self.share <= 1 or not 0 < self.weight <= 10:
            raise ConfigError(
                f"general.share={self.share} must lie in 0..1 and general.weight={self.weight} in 0..10, 0 not"
            )
        _check_at_least(self, judge_tokens=1)


@config
class SamplersConfig:
    """Who samples the answers: the learner's own engine, between its updates, actors on Ray (rl/ray_pool.py), or
    servers of vLLM or SGLang (rl/http_pool.py)."""

    workers: int = 0
    """Actors on Ray, each with a copy of the model and an engine; 0: none."""
    urls: tuple[str, ...] = ()
    """Servers that sample, each as http://HOST:PORT; they read the weights from a folder of this run."""
    api: Literal["vllm", "sglang"] = "vllm"
    """What the servers speak."""
    model_name: str = ""
    """The model's name at servers of vLLM."""
    at_once: int = 64
    """Requests that one server has at a time."""
    staleness: int = 0
    """Updates by which the weights that sampled may be older than those that learn: so many sets of answers are under
    way while the learner goes on. 0 waits for every set, with the numbers of a run without workers."""
    threads: int = 1
    """Processors of each worker."""
    address: str = "local"
    """local starts Ray on this machine for as long as the stage lasts; auto joins the cluster that this machine belongs
    to, HOST:PORT another."""
    timeout_s: float = 1800.0
    """How long the learner waits for one sampler's next answers. Then an actor is taken for hung and replaced; a
    server, which may also take so long to read weights, ends the run."""

    @property
    def are_apart(self) -> bool:
        """Whether anybody but the learner samples."""
        return bool(self.workers or self.urls)

    def __post_init__(self) -> None:
        _check_at_least(self, workers=0, staleness=0, threads=1, at_once=1)
        if self.staleness and not self.are_apart:
            raise ConfigError(
                f"samplers.staleness={self.staleness} needs samplers.workers or samplers.urls: a learner cannot be"
                " ahead of itself"
            )
        if self.workers and self.urls:
            raise ConfigError(f"samplers.workers={self.workers} and samplers.urls={list(self.urls)}: one of them")
        wrong = [url for url in self.urls if not re.fullmatch(r"https?://[^\s/]+", url)]
        if wrong or len(set(self.urls)) < len(self.urls):
            raise ConfigError(f"samplers.urls={list(self.urls)} must each be http://HOST:PORT, and each once")
        if self.urls and self.api == "vllm" and not self.model_name:
            raise ConfigError("samplers.urls needs samplers.model_name, the name of the model at the servers of vLLM")
        if self.timeout_s <= 0:
            raise ConfigError(f"samplers.timeout_s={self.timeout_s} must be above 0")
        if self.address not in ("local", "auto") and not re.fullmatch(r"[^\s:/]+:\d+", self.address):
            raise ConfigError(f"samplers.address={self.address!r} must be local, auto or HOST:PORT")


@config
class StragglersConfig:
    """Whether a step waits for its longest answers, or lets them go on after the update (rl/stragglers.py)."""

    groups: int = 0
    """Groups under way beyond n_prompts: a step learns from the first n_prompts whole ones (or more, where they end
    together), and what is unfinished goes on with the next weights. 0 waits for every answer."""
    staleness: int = 2
    """Most updates between an answer's first token and the step that learns from it; a step waits for the groups that
    would exceed it."""

    def __post_init__(self) -> None:
        _check_at_least(self, groups=0, staleness=1)


@config
class RLConfig:
    """A step asks n_prompts problems group_size times each, scores the answers, and learns from the differences."""

    steps: int = 0
    """Optimizer steps; 0 lets the budget decide."""
    algorithm: Algorithm = GRPOConfig()
    """How rewards become a loss."""
    n_prompts: int = 16
    """Problems of one step (X)."""
    group_size: int = 8
    """Answers to each problem (Y)."""
    max_tokens: int = 192
    """Longest answer, thought included."""
    temperature: float = 1.0
    """Of the rollouts; the trainer's log-probabilities are taken at the same one."""
    top_p: float = 1.0
    """Rollouts choose each token from the smallest set of most probable ones that holds this share; 1 is off. The set
    is kept, and the trainer's probabilities are over the same tokens (DeepSeek-V3.2, 3.1: keep sampling mask)."""
    top_k: int = 0
    """Rollouts choose each token from the k most probable ones; 0 is off. Kept like the set of top_p."""
    truncated: Literal["score", "mask"] = "score"
    """Answers cut at max_tokens earn nothing: they count in the loss (score), or only in their group's mean (mask)."""
    n_minibatches: int = 1
    """Optimizer steps per set of rollouts and pass."""
    n_epochs: int = 1
    """Passes over the same rollouts."""
    micro_tokens: int = 16_384
    """Most tokens in one forward and backward pass; the step's gradient is the same for every value."""
    recompute: Recompute = "auto"
    """Keep of each layer its input alone, and compute the layer again in the backward pass: memory for arithmetic.
    auto: where the device's memory would not hold sampler and trainer else, taking turns (`offload`) tried first."""
    offload: Literal["auto", "on", "off"] = "auto"
    """Keep the optimizer's state on the host while answers are sampled: auto where an accelerator's memory would not
    hold everything at once."""
    max_correction: float = 0.0
    """Truncated importance sampling: ratios are taken against the trainer's own log-probabilities from before the
    update, and a token counts at most this many times p(trainer) / p(sampler); 0 takes ratios against the sampler."""
    clip: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down."""
    lr_scale: float = 0.1
    """Learning rates of this stage over those of `optim`."""
    samplers: SamplersConfig = SamplersConfig()
    stragglers: StragglersConfig = StragglersConfig()
    replay_routes: Literal["auto", "on", "off"] = "auto"
    """Train with the experts that the engine chose; auto starts once the two differ for more than replay_above, and at
    once where tokens may be stale (samplers.staleness, stragglers.groups)."""
    replay_above: float = 0.01
    """Share of tokens whose experts differ between engine and trainer."""
    rebalance: bool = False
    """Move the router biases by the load of each step, as pretraining and fine-tuning do. Frozen unless asked: the few
    problems of a step load experts unevenly."""
    curriculum: CurriculumConfig = CurriculumConfig()
    tools: tuple[ToolName, ...] = ()
    """What the model may call while it answers; a call ends a turn, its result is read and not learned from.
    Examinations ask without tools."""
    max_calls: int = 4
    """Turns of one answer that may end in calls."""
    general: GeneralConfig = GeneralConfig()
    """Questions that a judge grades; examinations do without them."""
    reference_every: int = 0
    """Optimizer steps after which the model that the KL pulls to is replaced by the present one (R1: 400); 0 keeps the
    one that the stage started from. At step n the KL is to the model after step e * floor(n / e)."""
    give_up_after: int = 40
    """Steps in a row without one group whose answers earn differently, after which the run stops and says why; 0 goes
    on. Nothing is learned in such steps."""

    def check_processes(self, stage: str, n_processes: int, *, is_divided: bool) -> None:
        """Refuse what one process alone can do, or one that holds the whole model, where it is not so."""
        if self.stragglers.groups and n_processes > 1:
            raise ConfigError(
                f"{stage}.stragglers.groups={self.stragglers.groups} is for one process, and there are {n_processes}:"
                " they would not end a rollout at the same token; set it to 0"
            )
        if self.reference_every and is_divided and n_processes > 1:
            raise ConfigError(
                f"{stage}.reference_every={self.reference_every} is for models that every process holds whole; set it"
                " to 0, or divide nothing"
            )

    @property
    def is_filtered(self) -> bool:
        """Whether rollouts leave out tokens that the model gives a probability."""
        return self.top_p < 1 or self.top_k > 0

    def __post_init__(self) -> None:
        _check_at_least(self, give_up_after=0, reference_every=0, max_calls=1)
        if self.reference_every and not self.algorithm.kl:
            raise ConfigError(
                f"reference_every={self.reference_every} needs a KL to a reference: algorithm.kl above 0, with one of"
                " grpo, grpo_published, dr_grpo, deepseek_v32"
            )
        if len(set(self.tools)) < len(self.tools):
            raise ConfigError(f"tools={list(self.tools)} must name each tool once")
        _check_at_least(
            self, steps=0, n_prompts=1, group_size=2, max_tokens=1, n_minibatches=1, n_epochs=1, micro_tokens=1
        )
        _check_at_least(self, lr_scale=0, replay_above=0, max_correction=0)
        if not 0 < self.temperature <= 10:
            raise ConfigError(
                f"temperature={self.temperature} must lie above 0 and up to 10: greedy groups are all alike"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie above 0 and at most at 1; 1 is off")
        if self.top_k < 0 or self.top_k == 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 2, or 0 for off: groups of top_k=1 are all alike")
        if isinstance(self.algorithm, DAPOConfig) and self.algorithm.overlong_cache > self.max_tokens:
            raise ConfigError(
                f"algorithm.overlong_cache={self.algorithm.overlong_cache} must lie in 0..max_tokens={self.max_tokens}"
            )
        if self.samplers.staleness and self.n_minibatches * self.n_epochs > 1:
            raise ConfigError(
                f"samplers.staleness={self.samplers.staleness} counts updates, and takes one for each set of answers:"
                f" n_minibatches={self.n_minibatches} and n_epochs={self.n_epochs} must be 1"
            )
        if self.stragglers.groups:
            _check_stragglers(self)
        if self.samplers.urls:
            _check_servers(self)
        if self.n_minibatches > self.n_prompts:
            raise ConfigError(f"n_minibatches={self.n_minibatches} must lie in 1..n_prompts={self.n_prompts}")
