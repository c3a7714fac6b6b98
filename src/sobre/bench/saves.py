"""sobre bench saves: for how long does training wait for a saved state?

A round is one optimizer step without a save, and one with: the state is begun (training waits for the copy), the step
runs while a thread writes, and what is written is put into its place (training waits again). What must stay below 5 %
of a step is the two waits. How much slower the step itself becomes while a thread writes stands beside: on a machine
with a core to spare, little.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sobre.bench import ours
from sobre.bench.config import SavesBench
from sobre.bench.result import Result, checked
from sobre.bench.timing import Round, Say, Timing, Work, as_json, medians, ratio, time_once
from sobre.config.load import to_dict
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.train.resume import load_state
from sobre.train.state import Saving

MOST = 0.05
"""Of a step's seconds: how long training may wait for a state."""
STEP, WAITED, BESIDE = "step", "step and its waits for a state", "step while a state is written"


def bench(cfg: SavesBench, say: Say) -> Result:
    """Check what is read back, then time."""
    torch.set_num_threads(cfg.threads)
    model = ours.build(cfg.model, cfg.seed)
    optimizer = ours.make_optimizer(model, cfg.optimizer, 1e-3)
    generator = torch.Generator().manual_seed(cfg.seed)
    rows_BT1 = torch.randint(0, cfg.model.vocab_size, (cfg.rows, cfg.seq_len + 1), generator=generator)
    step = ours.training_step(model, rows_BT1, optimizer=optimizer)
    with TemporaryDirectory() as place:
        folder, rounds = Path(place), []
        step()
        check = [checked("tensors of a state read back that are others", _wrong(model, optimizer, cfg, folder), 0)]
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        say(f"{size / 1e6:,.0f} MB of weights and optimizer in a state")
        for index in range(-cfg.warmup, cfg.rounds):
            found = _round(model, optimizer, folder, step, saves_first=index % 2 == 1)
            if index >= 0:
                rounds.append(found)
                stall_s = found[WAITED].wall_s - found[STEP].wall_s
                say(
                    f"round {index + 1} of {cfg.rounds}: step {found[STEP].wall_s:.2f} s, while writing"
                    f" {found[BESIDE].wall_s:.2f} s, waits {stall_s:.3f} s"
                )
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
    return Result("saves", "timing", to_dict(cfg), cfg.threads, check, body, notes)


def _round(model: Decoder, optimizer: Optimizer, folder: Path, step: Work, *, saves_first: bool) -> Round:
    plain = None if saves_first else time_once(step)
    begun: list[Saving] = []
    copied = time_once(lambda: begun.append(Saving(folder, 1, model, optimizer, {}, keep=1)))
    beside = time_once(step)
    while not begun[0].is_written():  # as a run does, which asks after every step
        time.sleep(0.01)
    placed = time_once(begun[0].finish)
    plain = plain or time_once(step)
    waited = Timing(plain.wall_s + copied.wall_s + placed.wall_s, plain.cpu_s + copied.cpu_s + placed.cpu_s)
    return {STEP: plain, WAITED: waited, BESIDE: beside}


def _wrong(model: Decoder, optimizer: Optimizer, cfg: SavesBench, folder: Path) -> int:
    """How many weights and moments, read back from a state into another model, are not those that were saved."""
    Saving(folder, 1, model, optimizer, {}, keep=1).finish()
    other = ours.build(cfg.model, cfg.seed + 1)
    its = ours.make_optimizer(other, cfg.optimizer, 1e-3)
    load_state(folder, other, its)
    pairs = ((model.state_dict(), other.state_dict()), (optimizer.state_dict(), its.state_dict()))
    return sum(name not in read or not torch.equal(saved[name], read[name]) for saved, read in pairs for name in saved)
