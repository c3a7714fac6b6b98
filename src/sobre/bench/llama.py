"""The llama.cpp side, through llama-cpp-python: a GGUF file of the same weights, all sequences in one batch, greedy.

The prompts go in together, then each step brings the last token of every sequence, as llama.cpp's own batched bench
does. Where the package is missing the comparison is left out, and a note says so.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sobre.bench.timing import Work
from sobre.errors import RunError

LACKS = "" if find_spec("llama_cpp") else "llama.cpp is left out: llama-cpp-python is not installed"
"""Why there is no llama.cpp here; empty where there is one."""


FOUR_BITS = 2
"""llama.cpp's number for files of Q4_0."""
FLOAT32, NO_FLASH = 0, 0
"""llama.cpp's numbers for a cache of 32 bits, and for attention that is not fused."""
Rows = Sequence[Sequence[int]]
Logits = NDArray[np.float32]


def quantised(source: Path, target: Path, threads: int) -> None:
    """Have llama.cpp write a file in its own 4 bits (Q4_0: 32 weights share a scale; the output head has more)."""
    import llama_cpp

    cpp: Any = llama_cpp
    options = cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = FOUR_BITS, threads
    if code := cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options):
        raise RunError(f"llama.cpp does not quantise {source}: code {code}")


class Llama:
    """A GGUF file, loaded once."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.cpp: Any = llama_cpp
        self.threads = threads
        self.cpp.llama_backend_init()
        options = self.cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = self.cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise RunError(f"llama.cpp does not load {path}")
        self.n_vocab = self.cpp.llama_vocab_n_tokens(self.cpp.llama_model_get_vocab(self.model))

    def reading(self, n_tokens: int, n_rows: int, *, exact: bool = False) -> Callable[[Rows], Logits]:
        """What reads up to `n_rows` sequences of up to `n_tokens` together and returns the logits after every token.

        The cache is llama.cpp's own choice (16 bits); `exact` has it in 32 and attention in plain steps.
        """
        context, batch = self._room(n_rows, n_tokens, n_rows * n_tokens, exact=exact)

        def read(rows: Rows) -> Logits:
            self.cpp.llama_memory_clear(self.cpp.llama_get_memory(context), True)
            self._decode(context, batch, rows, 0, last_only=False)
            return np.stack([self._logits(context, i).copy() for i in range(batch.n_tokens)])

        return read

    def generation(self, prompts: Rows, n_new: int) -> Work:
        """Continue every prompt by `n_new` tokens; returns them as a list of lists."""
        n_rows, n_prompt = len(prompts), len(prompts[0])
        context, batch = self._room(n_rows, n_prompt + n_new, max(512, n_rows * n_prompt))

        def run(tokens: Rows, start: int) -> list[int]:
            """The most probable token after each row, given that `start` tokens of each are in its cache."""
            lasts = self._decode(context, batch, tokens, start, last_only=True)
            return [int(self._logits(context, i).argmax()) for i in lasts]

        def generate() -> list[list[int]]:
            self.cpp.llama_memory_clear(self.cpp.llama_get_memory(context), True)
            last = run(prompts, 0)
            rows: list[list[int]] = [[] for _ in prompts]
            for step in range(n_new):
                for row, token in zip(rows, last, strict=True):
                    row.append(token)
                if step < n_new - 1:
                    last = run([[token] for token in last], n_prompt + step)
            return rows

        return generate

    def _room(self, n_rows: int, n_tokens: int, n_batch: int, *, exact: bool = False) -> tuple[Any, Any]:
        """A context for `n_rows` sequences of `n_tokens`, and a batch of up to `n_batch` tokens for it."""
        options = self.cpp.llama_context_default_params()
        options.n_ctx = n_rows * -(-n_tokens // 256) * 256
        options.n_batch, options.n_seq_max = n_batch, n_rows
        options.n_threads = options.n_threads_batch = self.threads
        if exact:
            options.type_k = options.type_v = FLOAT32
            options.flash_attn_type = NO_FLASH
        context = self.cpp.llama_init_from_model(self.model, options)
        if not context:
            raise RunError(f"llama.cpp makes no context for {n_rows} sequences of {n_tokens} tokens")
        return context, self.cpp.llama_batch_init(n_batch, 0, 1)

    def _decode(self, context: Any, batch: Any, tokens: Rows, start: int, *, last_only: bool) -> list[int]:
        """Let the context read these rows, `start` tokens of each being in its cache; returns where each row ends in
        the batch. Logits are kept after every token, or after each row's last."""
        places = [(row, j) for row, ids in enumerate(tokens) for j in range(len(ids))]
        ends = [i for i, (row, j) in enumerate(places) if j == len(tokens[row]) - 1]
        batch.n_tokens = len(places)
        for i, (row, j) in enumerate(places):
            batch.token[i], batch.pos[i] = tokens[row][j], start + j
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = not last_only or j == len(tokens[row]) - 1
        if code := self.cpp.llama_decode(context, batch):
            raise RunError(f"llama.cpp's decode failed with {code}")
        return ends

    def _logits(self, context: Any, place: int) -> Logits:
        """Those after a token of the last batch: a view."""
        return np.ctypeslib.as_array(self.cpp.llama_get_logits_ith(context, place), (self.n_vocab,))
