"""What rounding gains: how fast a model decodes as it is and rounded, measured in turns in one process."""

from collections.abc import Mapping
from statistics import median

from sobre.engine.engine import Engine
from sobre.serve.load import measure_speed

ROUNDS = 3
BUDGET_S = 2.0
"""Of one measurement, at the most."""
OVER = ("alone_over_model", "busy_over_model")
Speeds = dict[str, dict[str, float]]


def speeds(engines: Mapping[str, Engine], at_once: int) -> Speeds:
    """Tokens per second of each engine, one request alone and `at_once` together: medians of rounds in which they take
    turns, and for all but the first the medians of its ratios to the first."""
    rounds = [
        {name: measure_speed(engine, at_once, BUDGET_S) for name, engine in engines.items()} for _ in range(ROUNDS)
    ]
    first = next(iter(engines))
    told: Speeds = {}
    for name in engines:
        told[name] = {how: median(getattr(found[name], how) for found in rounds) for how in ("alone", "busy")}
        told[name]["at_once"] = float(at_once)
        for how in ("alone", "busy") if name != first else ():
            ratios = [getattr(found[name], how) / getattr(found[first], how) for found in rounds]
            told[name][f"{how}_over_model"] = median(ratios)
    return told


def told(found: Speeds, names: Mapping[str, str]) -> str:
    """In a line; `names` says how each form of the model is called."""
    parts = []
    for name, speed in found.items():
        alone, busy = (f", {speed[key]:.2f} times" if key in speed else "" for key in OVER)
        together = f"{speed['busy']:,.0f} for {speed['at_once']:.0f} at once{busy}"
        parts.append(f"{speed['alone']:,.0f} {names[name]}{alone} ({together})")
    return "decoding, tokens a second: " + "; ".join(parts)
