"""sobre bench saves: for how long does training wait for a saved state?

A round is one optimizer step without a save, and one with: the state is begun (training waits for the copy), the step
runs while a thread writes, and the bill is asked for once all is in its place (training waits again, for little). What
must stay below 5 % of a step is the two waits. How much slower the step itself becomes while a thread writes stands
beside: on a machine with a core to spare, little.

Under `torchrun --nproc-per-node 2 -m sobre bench saves` the model is divided over the processes (parallel.shards), and
of each time the slowest process's counts.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from sobre.bench import ours
from sobre.bench.config import SavesBench
from sobre.bench.result import Result, checked
from sobre.bench.timing import Round, Say, Timing, Work, as_json, medians, ratio, time_once
from sobre.config.load import to_dict
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.parallel.config import ParallelConfig
from sobre.parallel.division import Division, here
from sobre.runtime.processes import Processes
from sobre.train.divide import divide
from sobre.train.resume import load_state
from sobre.train.state import Saving

MOST = 0.05
"""Of a step's seconds: how long training may wait for a state."""
STEP, WAITED, BESIDE = "step", "step and its waits for a state", "step while a state is written"


def bench(cfg: SavesBench, say: Say) -> Result | None:
    """Check what is read back, then time. Under torchrun the first process has the result, the others None."""
    processes = Processes.start()
    if not processes.is_first:
        say = _nothing
    torch.set_num_threads(cfg.threads)
    learner = _learner(cfg, cfg.seed, processes)
    generator = torch.Generator().manual_seed(cfg.seed)
    rows_BT1 = torch.randint(0, cfg.model.vocab_size, (cfg.rows, cfg.seq_len + 1), generator=generator)
    step = ours.training_step(learner.model, rows_BT1, optimizer=learner.optimizer, division=learner.division)
    with ExitStack() as stack:
        folder = Path(processes.decide(lambda: stack.enter_context(TemporaryDirectory())))
        step()
        wrong = sum(processes.gather(_wrong(learner, cfg, folder)))
        check = [checked("tensors of a state read back that are others", wrong, 0)]
        size = processes.decide(lambda: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        say(f"{size / 1e6:,.0f} MB of weights and optimizer in a state")
        rounds: list[Round] = []
        for index in range(-cfg.warmup, cfg.rounds):
            found = slowest(processes.gather(_round(learner, folder, step, saves_first=index % 2 == 1)))
            if index >= 0:
                rounds.append(found)
                stall_s = found[WAITED].wall_s - found[STEP].wall_s
                say(
                    f"round {index + 1} of {cfg.rounds}: step {found[STEP].wall_s:.2f} s, while writing"
                    f" {found[BESIDE].wall_s:.2f} s, waits {stall_s:.3f} s"
                )
        processes.stop()  # nobody looks into the folder any more
        if not processes.is_first:
            return None
    units = dict.fromkeys((STEP, WAITED, BESIDE), float(cfg.rows * cfg.seq_len))
    body = {
        "rounds": as_json(rounds),
        "medians": medians(rounds, units, "tokens"),
        "ratios": [
            ratio(rounds, WAITED, STEP, units=units, target=1 / (1 + MOST)),
            ratio(rounds, BESIDE, STEP, units=units),
        ],
    }
    notes = (
        f"a state has {size / 1e6:,.0f} MB; training may wait for {MOST:.0%} of a step",
        "the CPU clock counts the thread that writes, too",
    )
    settings = {**to_dict(cfg), "processes": processes.count}
    return Result("saves", "timing", settings, cfg.threads, check, body, notes)


def _nothing(line: str) -> None:
    """What a process says that is not the first."""


class Learner(NamedTuple):
    """What is trained and saved: whole in one process, divided over several."""

    model: Decoder
    optimizer: Optimizer
    division: Division | None
    processes: Processes

    def save(self, folder: Path) -> Saving:
        """Begin to write its state."""
        return Saving(
            folder, 1, self.model, self.optimizer, {}, keep=1, division=self.division, processes=self.processes
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a state of it holds, as it lies in this process."""
        return {**self.model.state_dict(), **self.optimizer.state_dict()}


def _learner(cfg: SavesBench, seed: int, processes: Processes) -> Learner:
    model = ours.build(cfg.model, seed)
    division = divide(model, ParallelConfig(shards=processes.count), processes)
    return Learner(model, ours.make_optimizer(model, cfg.optimizer, 1e-3, division), division, processes)


def slowest(found: Sequence[Round]) -> Round:
    """Of a round's times in every process, the longest of each."""
    return {name: max((its[name] for its in found), key=lambda timing: timing.wall_s) for name in found[0]}


def _round(learner: Learner, folder: Path, step: Work, *, saves_first: bool) -> Round:
    plain = None if saves_first else time_once(step)
    begun: list[Saving] = []
    copied = time_once(lambda: begun.append(learner.save(folder)))
    beside = time_once(step)
    while not begun[0].is_written():  # as a run does, which asks after every step
        time.sleep(0.01)
    placed = time_once(begun[0].finish)
    plain = plain or time_once(step)
    waited = Timing(plain.wall_s + copied.wall_s + placed.wall_s, plain.cpu_s + copied.cpu_s + placed.cpu_s)
    return {STEP: plain, WAITED: waited, BESIDE: beside}


def _wrong(learner: Learner, cfg: SavesBench, folder: Path) -> int:
    """How many weights and moments here, read back from a state into another model, are not those that were saved."""
    learner.save(folder).finish()
    other = _learner(cfg, cfg.seed + 1, learner.processes)
    load_state(folder, other.model, other.optimizer, division=other.division, processes=other.processes)
    saved, read = learner.tensors(), other.tensors()
    return sum(name not in read or not torch.equal(here(saved[name]), here(read[name])) for name in saved)
