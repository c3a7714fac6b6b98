"""Peak memory of one side's training step, in a process of its own: what it grows by beyond its imports.

`python -m sobre.bench.memory SIDE FOLDER CONFIG` prints one JSON document. The allocator's settings are inherited, so
both sides keep freed memory alike.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from sobre.bench.config import TrainBench
from sobre.config.load import Layer, decode, to_dict
from sobre.errors import RunError

STEPS = 3
SIDES = ("sobre", "transformers")


def peaks(cfg: TrainBench, folder: Path) -> dict[str, Any]:
    """Per side: MiB after the imports, at the peak, and the difference."""
    found = {}
    for side in SIDES:
        command = [sys.executable, "-m", "sobre.bench.memory", side, str(folder), json.dumps(to_dict(cfg))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"the process that measures the memory of {side} failed:\n{done.stderr[-2000:]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(side: str, folder: Path, cfg: TrainBench) -> dict[str, float]:
    """A few training steps of one side in this process."""
    import torch

    from sobre.bench import ours, peer, train

    torch.set_num_threads(cfg.threads)
    if side == "transformers":
        import transformers.models.deepseek_v3.modeling_deepseek_v3  # noqa: F401  counted as import, not as training
    rows_BT1 = train.random_rows(cfg)
    before = _resident_mib()
    if side == "transformers":
        step = peer.training_step(peer.load_peer(folder), rows_BT1, lr=cfg.lr, bf16=True)
    else:
        model = ours.build(cfg.model, cfg.seed, torch.bfloat16)
        step = ours.training_step(model, rows_BT1, optimizer=ours.make_optimizer(model, "adamw", cfg.lr))
    for _ in range(STEPS):
        step()
    peak = _peak_mib()
    return {"before_mib": before, "peak_mib": peak, "grown_mib": peak - before}


def _peak_mib() -> float:
    """Largest resident memory of this program so far.

    Not getrusage's ru_maxrss where /proc is there: that one begins with the memory of the process that started us.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        per_mib = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib


def _resident_mib() -> float:
    """Resident memory now, or the largest so far where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return _peak_mib()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), decode(TrainBench, [Layer("", json.loads(sys.argv[3]))]))))
