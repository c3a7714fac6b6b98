"""What real machines make of their data sheets: the constants of the time model, fitted on published runs.

One set for all models, all chips and all years. `sobre plan validate` fits them again in front of your eyes, from
PRIOR, on the scored rows of runs.toml (plan/runs.py has the rule), and shows beside each fitted error the error of the
prediction made without that row. Runs of one paper share their software: n of them weigh as much as the square root of
n. Layouts that were not published are chosen with PRIOR, so that no run's hours choose its own layout. `FITTED` equals
that fit (a test says so).
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The fitted constants."""

    matrix: float
    """Share of the data sheet's matrix rate that is reached when memory is no limit: clocks under load, tiles."""
    traffic: float
    """How often a matrix product moves its operands and its result through the memory, instead of once."""
    attention: float
    """Share of the 16-bit matrix rate that attention reaches, scores and weighted sum, counted causal."""
    elementwise: float
    """How often what is no matrix product (norms, gates, rotation, casts) moves a layer's activations, per pass."""
    link: float
    """Share of a link's stated one-way bandwidth that collectives reach."""
    overlap: float
    """Share of the computation behind which the collectives of data parallelism and of experts can hide. No scored run
    depends on it, so that it stays at its prior."""
    jitter: float
    """Share of the time that is lost for each doubling of the number of chips that wait for each other."""

    def values(self) -> tuple[float, ...]:
        return tuple(vars(self).values())

    def where(self, measured: bool) -> "Efficiency":
        """What remains to be lost on a chip whose rates were measured: its matrix rate is reached as it stands."""
        return replace(self, matrix=1.0, attention=self.attention / self.matrix) if measured else self

    @classmethod
    def of(cls, values: "tuple[float, ...] | list[float]") -> "Efficiency":
        return cls(**dict(zip(cls.__dataclass_fields__, values, strict=True)))


PRIOR = Efficiency(matrix=0.8, traffic=3.0, attention=0.4, elementwise=3.0, link=0.7, overlap=0.5, jitter=0.01)
"""What micro-benchmarks of matrix products, attention kernels and collectives usually show."""
PRIOR_SPREAD = 0.3
"""How far, in natural logarithms, a constant may lie from its prior before that costs as much as one run that is missed
by NOISE."""
NOISE = 0.15
"""How well a run of unknown software can be known at all, in natural logarithms."""

FITTED = Efficiency(
    matrix=0.6135, traffic=3.306, attention=0.3931, elementwise=3.134, link=0.7884, overlap=0.5, jitter=0.009777
)

FAILURES_PER_CHIP_HOUR = 2.0e-5
"""419 unexpected interruptions of 16,384 chips in 54 days (arXiv 2407.21783, 3.3.4)."""
HOURS_PER_FAILURE = 0.3
"""Detection, restart and the steps since the last checkpoint: what leaves the 90 % of effective time told there."""
CHECKPOINT_SHARE = 0.005
"""Time that saving takes from training when it runs beside it: *assumed*."""
COMMUNICATION_UNITS = 20 / 132
"""Share of the chip's units that DualPipe sets aside for the all-to-all (arXiv 2412.19437, 3.2.2)."""
