"""Every number of the planner that an experiment may change, in one place, each with its source.

A figure marked *assumed* has no measurement of ours behind it yet; the horizon (runtime/horizon.py) corrects what it
gets wrong about speed while the run goes on.
"""

from dataclasses import dataclass

from sobre.models.config import ModelConfig


@dataclass(frozen=True)
class Rung:
    """One step of the ladder of sizes: width and depth; everything else follows (plan/ladder.py)."""

    d_model: int
    n_layers: int


LADDER = tuple(
    Rung(d_model, n_layers)
    for d_model, n_layers in [
        (64, 2), (64, 3), (96, 3), (128, 3), (128, 4), (160, 4), (192, 4), (192, 6), (256, 6), (320, 7), (384, 8),
        (512, 8), (512, 12), (640, 12), (768, 12), (1024, 16), (1536, 20), (2048, 24),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What the planner believes about learning and about machines."""

    batch_scale: float = 0.2920
    batch_power: float = 0.3271
    """Tokens of a batch = scale * C ** power, with C the training FLOPs (DeepSeek LLM, arXiv 2401.02954, 3.1)."""
    lr_scale: float = 0.3118
    lr_power: float = -0.1250
    """Peak AdamW learning rate = scale * C ** power (the same fit)."""
    train_efficiency: float = 0.15
    """Model FLOPs per second of a training step over the measured matrix-product peak: 0.35 of one thread's peak was
    reached at width 256 on two cores; smaller widths and a second thread reach less: *assumed*."""
    decode_efficiency: float = 0.07
    """The same for batched decoding, which reads a cache and works in thin matrices: *assumed* from decode being about
    as fast per token as training is, at a third of the FLOPs."""
    read_efficiency: float = 0.3
    """The same for reading held-out text in whole windows, forward alone: *assumed* from 0.2 on a busy machine."""
    start_s: float = 11.0
    """Imports, calibration, generated data and tokenizer, before the first training step: *assumed*."""
    end_s: float = 5.0
    """Model folders, report and model card, after the last evaluation: *assumed*."""
    least_evaluation: float = 0.05
    """Share of the budget that evaluations get at the least."""
    evaluation_margin: float = 1.5
    """How much more than its estimated cost is kept for an evaluation."""
    eval_prompt: int = 48
    eval_answer: int = 80
    """Tokens of an evaluated problem and of its answer, for the estimate of an evaluation's cost."""
    rl_answer: int = 96
    """Tokens of a rollout, for the guess of the number of RL steps."""
    least_steps: int = 20
    """Optimizer steps below which a stage cannot teach anything: a smaller budget is refused."""
    least_sampled_steps: int = 2
    """The same of a stage whose model answers before each step."""
    good_epochs: float = 4.0
    """Repeating data up to here is nearly as good as new data (arXiv 2305.16264): more is noted in the plan."""
    most_epochs: float = 40.0
    """Repeating data more often than this teaches nothing (the same paper): the plan is refused."""
    bytes_per_parameter: int = 24
    """Master weight, gradient, optimizer state, compute copies and temporaries of training, for the memory check."""
    bytes_per_table_number: int = 8
    """The same of the memory's tables, whose gradient is sparse and whose state is one number a row: the weight, and a
    copy while it is saved."""
    most_memory: float = 0.5
    """Share of the machine's memory that parameters may take in training; activations and data need the rest."""

    def training_bytes(self, n_numbers: int, model: ModelConfig) -> int:
        """Of a model with so many stored numbers."""
        tables = model.memory.n_table_numbers
        return (n_numbers - tables) * self.bytes_per_parameter + tables * self.bytes_per_table_number
