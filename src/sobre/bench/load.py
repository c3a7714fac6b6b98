"""sobre bench load: a model folder into a model that is ready, against reading the same bytes into fresh memory.

Every turn is a process of its own, so that no memory is warm, with the page cache warm for both. The limit reads each
file into one new block with `readinto`. Ours ends with the first forward of one token; what a second forward takes is
subtracted. Weights are bfloat16, two gigabytes of them, most in experts, which the files hold one by one.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open

from sobre.bench.config import LoadBench
from sobre.bench.result import Result, checked
from sobre.bench.timing import Round, Say, Timing, as_json, medians, ratio
from sobre.config.load import to_dict
from sobre.errors import RunError
from sobre.models.checkpoint import family_for, load_model, save_model, tensor_places
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

SIDES = ("sobre", "readinto")
SLOWEST = 1.5
"""Times the limit's seconds that ours may take."""
PATTERN_NUMBERS = 1 << 20


def bench(cfg: LoadBench, say: Say) -> Result:
    """Write the folder, check what is loaded, then time."""
    torch.set_num_threads(cfg.threads)
    with TemporaryDirectory() as place:
        folder = Path(place)
        write(cfg.model, cfg.seed, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        say(f"{size / 1e9:.2f} GB of bfloat16 in {folder}")
        check = [checked("tensors loaded that are not those of the files", _wrong(folder), 0)]
        rounds: list[Round] = []
        for index in range(-cfg.warmup, cfg.rounds):
            order = SIDES if index % 2 == 0 else SIDES[::-1]
            found = {side: _turn(side, folder, cfg.threads) for side in order}
            if index >= 0:
                rounds.append(found)
                seconds = ", ".join(f"{side} {found[side].wall_s:.2f} s" for side in SIDES)
                say(f"round {index + 1} of {cfg.rounds}: {seconds}")
    units = dict.fromkeys(SIDES, float(size))
    body = {
        "rounds": as_json(rounds),
        "medians": medians(rounds, units, "bytes"),
        "ratios": [ratio(rounds, "sobre", "readinto", units=units, target=1 / SLOWEST)],
    }
    return Result("load", "timing", to_dict(cfg), cfg.threads, check, body)


def write(cfg: ModelConfig, seed: int, folder: Path) -> None:
    """A folder with that model in bfloat16; its numbers are one block of random ones, again and again."""
    with torch.device("meta"):
        model = Decoder(cfg)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    model.to_empty(device="cpu")
    pattern = 0.02 * torch.randn(PATTERN_NUMBERS, generator=torch.Generator().manual_seed(seed)).bfloat16()
    for tensor in (*model.parameters(), *(router.bias_E for router in model.routers())):
        for part in tensor.detach().view(-1).split(PATTERN_NUMBERS):
            part.copy_(pattern[: len(part)])
    save_model(model, folder, dtype=torch.bfloat16)


def measure(side: str, folder: Path) -> Timing:
    """One turn in this process: seconds until the bytes are there, or until the model is ready."""
    if side == "readinto":
        files = sorted(folder.glob("*.safetensors"))
        wall, cpu = time.perf_counter(), time.process_time()
        blocks = [torch.empty(file.stat().st_size, dtype=torch.uint8) for file in files]
        for file, block in zip(files, blocks, strict=True):
            _read(file, block)
        return Timing(time.perf_counter() - wall, time.process_time() - cpu)
    wall, cpu = time.perf_counter(), time.process_time()
    model = load_model(folder)
    _forward(model)
    ready, ready_cpu = time.perf_counter(), time.process_time()
    _forward(model)
    again, again_cpu = time.perf_counter() - ready, time.process_time() - ready_cpu
    return Timing(ready - wall - again, ready_cpu - cpu - again_cpu)


def _read(file: Path, block: torch.Tensor) -> None:
    flat: Any = block.numpy()
    target = memoryview(flat)
    with file.open("rb", buffering=0) as stream:
        done = 0
        while done < len(target):
            done += stream.readinto(target[done:]) or 0


@torch.no_grad()
def _forward(model: Decoder) -> None:
    model.logits(model(StepInput(torch.zeros(1, dtype=torch.long), lengths=(1,))).hidden_ND)


def _turn(side: str, folder: Path, threads: int) -> Timing:
    command = [sys.executable, "-m", "sobre.bench.load", side, str(folder), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"the process that loads by {side} failed:\n{done.stderr[-2000:]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def _wrong(folder: Path) -> int:
    """How many tensors of the model, put back under their names in the files, are not those of the files."""
    model = load_model(folder)
    family = family_for(model)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(not torch.equal(file.get_tensor(name), place) for name, place in tensor_places(model, family))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2])).__dict__))
