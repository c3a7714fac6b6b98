"""Scaling laws: what loss does a model of N parameters reach after D tokens? Every constant names its source.

Loss is in nats per token of web text with a vocabulary of about 32K; laws of different papers saw different text, so
that their span is an honest width of the prediction, and differences between plans mean more than the value itself.
Mixtures of experts are read as dense models of more parameters: `leverage` says how many more.
"""

from dataclasses import dataclass
from math import log

from sobre.plan.outline import Outline
from sobre.plan.own_law import Fit

LAWS = (
    Fit(e=1.8172, a=482.01, alpha=0.3478, b=2085.43, beta=0.3658),
    Fit(e=1.69, a=406.4, alpha=0.34, b=410.7, beta=0.28),
)
"""Besiroglu et al., arXiv 2404.10102 (Chinchilla's runs fitted again), and Hoffmann et al., arXiv 2203.15556, 3.3. The
first one chooses; all of them give the span."""
LEVERAGE_LARGE = (1e22, 0.54)
"""(training FLOPs, exponent): DeepSeekMoE 16B equals a dense 7B with 40 % of the FLOPs at 17 % activation
(arXiv 2401.06066, 5), and 3 % activation is worth more than 7x (arXiv 2507.17702): 2.5 = 5.9^0.52, 7 = 32^0.56."""
MIXTURE_STEPS = 358 / 430
"""Our own race at 5M active parameters: steps of a mixture over those of its dense twin for the same loss, with 3.9
stored parameters for each active one."""
LEVERAGE_SMALL = (7e13, 0.13)
"""What that race says: 430 / 358 = 3.9^0.13."""
LAWS_FROM = 1e17
"""Training FLOPs below which no law is asked: Chinchilla's smallest runs had 6e18, and lower is extrapolation."""
FITTED_FROM = 6e18
"""Training FLOPs from which on the laws were fitted (arXiv 2203.15556, 3.2)."""
SPREAD = 0.05
"""What the choice of data, optimizer and vocabulary moves, in nats: *assumed*."""


@dataclass(frozen=True)
class Loss:
    """A prediction with its span."""

    value: float
    low: float
    high: float


def leverage(model: Outline, flops: float) -> float:
    """How many times more parameters a dense model would need: (stored / active) ** exponent, by compute."""
    (c0, g0), (c1, g1) = LEVERAGE_SMALL, LEVERAGE_LARGE
    at = min(1.0, max(0.0, (log(flops) - log(c0)) / (log(c1) - log(c0))))
    embedding = model.embed + model.head
    stored = model.total - embedding
    active = model.active - model.vocab_size * model.d_model
    return float((stored / active) ** (g0 + at * (g1 - g0))) if model.is_moe else 1.0


def expected_loss(model: Outline, tokens: float, flops: float) -> Loss:
    """Loss after `tokens`; `flops` is the compute of the whole training."""
    n = model.active * leverage(model, flops)
    values = [law.loss(n, tokens) for law in LAWS]
    return Loss(values[0], min(values) - SPREAD, max(values) + SPREAD)
