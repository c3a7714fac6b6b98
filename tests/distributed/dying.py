"""Started by torchrun in place of `-m sobre`: one process ends with kill -9 at a place, in the first attempt alone.

SOBRE_TEST_DIES names the place and the rank: "step 0", "save 1", "export 1".
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from sobre.cli import main
from sobre.train import export, loop
from sobre.train.state import Saving

place, rank = os.environ["SOBRE_TEST_DIES"].split()


def dies(owner: Any, name: str, *, at: Callable[..., bool], after: bool) -> None:
    """In the chosen process, end in the first call that `at` says yes to, before or after its work."""
    true = getattr(owner, name)

    def call(*args: Any, **named: Any) -> Any:
        is_now = at(*args)
        if is_now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = true(*args, **named)
        if is_now:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, call)


if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
    match place:
        case "step":
            dies(loop, "_step", at=lambda stage, feed, lr, step: step == 5, after=True)
        case "save":  # its file of the state is written, others' may be
            dies(Saving, "_seal", at=lambda saving, path: saving.meta["step"] == 5, after=False)
        case "export":  # its first file of the model is written, and no index
            dies(export, "save_file", at=lambda *_: True, after=True)
sys.exit(main())
