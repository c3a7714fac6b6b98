"""Started by torchrun in place of `-m sobre`: two steps after a saved state the last process has a loss that is NaN.

Only in the first attempt; what torchrun starts anew is healthy. SOBRE_TEST_STATES is where the states are saved.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sobre.cli import main
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.train import loop
from sobre.train.batch import Batch
from sobre.train.losses import Loss, LossFn
from sobre.train.state import saved_steps

healthy, steps = loop.train_step, 0


def spoiled_step(model: Any, optimizer: Any, batches: Any, loss_fn: LossFn, **named: Any) -> Any:
    global steps

    def spoiled(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
        return Loss(loss_fn(model, output, batch).sum * torch.nan)

    saved = saved_steps(Path(os.environ["SOBRE_TEST_STATES"]))
    if not saved:
        time.sleep(0.1)  # so that there is one before the stage ends
    is_now = bool(saved) and steps >= saved[-1] + 2
    steps += 1
    return healthy(model, optimizer, batches, spoiled if is_now else loss_fn, **named)


if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
    loop.train_step = spoiled_step
sys.exit(main())
