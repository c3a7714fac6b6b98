"""What rounding gains: how fast a model decodes as it is and rounded, measured in turns in one process."""

from collections.abc import Mapping
from statistics import median

from sobre.engine.engine import Engine
from sobre.serve.load import PROBE_TOKENS, probe

ROUNDS = 3
BUDGET_S = 1.0
"""Of one probe, at the most."""
OVER = ("alone_over_model", "busy_over_model")
Speeds = dict[str, dict[str, float]]


def speeds(engines: Mapping[str, Engine], at_once: int) -> Speeds:
    """Tokens per second of each engine, one request alone and `at_once` together: medians of rounds in which they take
    turns, and for all but the first the medians of its ratios to the first."""
    first = next(iter(engines))
    found: dict[str, dict[str, list[float]]] = {name: {"alone": [], "busy": []} for name in engines}
    for engine in engines.values():
        probe(engine, at_once, 2, BUDGET_S)  # what a first step sets up is not counted
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            n_tokens = max(1, min(PROBE_TOKENS, engine.max_len - 1))
            found[name]["alone"].append(probe(engine, 1, n_tokens, BUDGET_S))
            found[name]["busy"].append(probe(engine, at_once, n_tokens, BUDGET_S))
    told: Speeds = {}
    for name, of in found.items():
        told[name] = {"alone": median(of["alone"]), "busy": median(of["busy"]), "at_once": float(at_once)}
        for how in of if name != first else ():
            ratios = [a / b for a, b in zip(of[how], found[first][how], strict=True)]
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
