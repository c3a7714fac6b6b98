"""What a run says of its own health: experts that nobody visits, biases that run away, a process that holds others up.

Experts are judged over WINDOW steps: a step may be too small to reach all. Processes are compared by the seconds in
which they did not wait for others (runtime/waiting.py), since in a step all wait for the slowest and take as long.

Shapes: L routing layers, E experts.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

WINDOW = 20
"""Steps without a token after which an expert counts as dead."""
SLOW = 1.3
"""A process is slow when its own time is longer than the others' median by this factor, twice in a row."""

FAR = 1.0
"""A score of a router is below 1 (sigmoid or softmax): biases this far apart decide alone who is chosen."""


class Health:
    """Example: metrics |= health.see(load_LE, step); [print(text) for text in health.news()]"""

    def __init__(self) -> None:
        self._idle_LE: Tensor | None = None
        """Steps in a row without a token."""
        self._dead, self._slow, self._suspect = 0, -1, -1
        self._is_far = False
        self._news: list[str] = []

    def see(self, load_LE: Tensor, step: int) -> dict[str, Any]:
        """Largest load over the mean, minus 1 (MaxVio), and the dead experts; every tenth step the loads themselves."""
        before_LE = torch.zeros_like(load_LE) if self._idle_LE is None else self._idle_LE
        self._idle_LE = torch.where(load_LE > 0, 0, before_LE + 1)
        found: dict[str, Any] = {"max_violation": float((load_LE.amax(1) / load_LE.float().mean(1)).max()) - 1}
        found["dead_experts"] = self._count((self._idle_LE >= WINDOW).nonzero().tolist())
        if step % 10 == 1:
            found["load_LE"] = load_LE.tolist()
        return found

    def state(self) -> list[list[int]] | None:
        """What a saved state must hold, so that the numbers of a resumed run are the same."""
        return None if self._idle_LE is None else self._idle_LE.tolist()

    def restore(self, state: list[list[int]] | None) -> None:
        """Go on from a saved state."""
        self._idle_LE = None if state is None else torch.tensor(state)

    def compare(self, own_s: Sequence[float]) -> dict[str, Any]:
        """Which process took the most time of its own since the last comparison, and how much more than the median."""
        if len(own_s) == 1:
            return {}
        slowest = max(range(len(own_s)), key=lambda rank: own_s[rank])
        others = [seconds for rank, seconds in enumerate(own_s) if rank != slowest]
        ratio = own_s[slowest] / max(median(others), 1e-9)
        found, self._suspect = self._suspect, slowest if ratio >= SLOW else -1
        slow = self._suspect
        if slow != self._slow and slow == found:  # twice in a row: machines are uneven for moments
            said = f"process {slow} holds the others up: its part takes {ratio:.1f} times as long as theirs"
            self._news.append(said if slow >= 0 else "no process is slow any more")
            self._slow = slow
        return {"slowest_process": slowest, "slowest_ratio": ratio}

    def drifted(self, spread: float) -> dict[str, Any]:
        """How far the biases of a layer's router, which begin equal, have come apart; the largest of all layers."""
        is_far = spread >= FAR
        if is_far != self._is_far:
            far = f"the biases of a router are {spread:.2f} apart: they outweigh its scores, which are below {FAR:g}"
            self._news.append(far if is_far else f"router biases are less than {FAR:g} apart again")
            self._is_far = is_far
        return {"bias_drift": spread}

    @staticmethod
    def line(found: Mapping[str, Any]) -> str:
        """What the log has of a step's health, in words; empty for one process without experts and MTP."""
        says = {
            "slowest_process": "process {slowest_process} takes longest ({slowest_ratio:.2f} times the others' median)",
            "max_violation": "max violation {max_violation:.2f}",
            "dead_experts": "dead experts {dead_experts}",
            "bias_drift": "bias drift {bias_drift:.3f}",
            "mtp_acceptance": "MTP right {mtp_acceptance:.1%}",
        }
        return ", ".join(text.format(**found) for name, text in says.items() if name in found)

    def news(self) -> list[str]:
        """What has changed since it was asked last, in words."""
        news, self._news = self._news, []
        return news

    def _count(self, places: list[list[int]]) -> int:
        if len(places) != self._dead:
            shown = ", ".join(f"{expert} of routing layer {layer}" for layer, expert in places[:4])
            more = f" and {len(places) - 4} more" if len(places) > 4 else ""
            dead = f"experts without a token in {WINDOW} steps: {shown}{more}"
            self._news.append(dead if places else "no expert is dead any more")
            self._dead = len(places)
        return len(places)
