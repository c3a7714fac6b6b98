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

    def reading(
        self, n_tokens: int, n_rows: int, *, exact: bool = False
    ) -> Callable[[Sequence[Sequence[int]]], Logits]:
        """What reads up to `n_rows` sequences of up to `n_tokens` together and returns the logits after every token.

        The cache is llama.cpp's own choice (16 bits); `exact` has it in 32 and attention in plain steps.
        """
        cpp = self.cpp
        options = cpp.llama_context_default_params()
        options.n_ctx = n_rows * -(-n_tokens // 256) * 256
        options.n_batch, options.n_seq_max = n_rows * n_tokens, n_rows
        options.n_threads = options.n_threads_batch = self.threads
        if exact:
            options.type_k = options.type_v = FLOAT32
            options.flash_attn_type = NO_FLASH
        context = cpp.llama_init_from_model(self.model, options)
        if not context:
            raise RunError(f"llama.cpp makes no context for {n_rows} sequences of {n_tokens} tokens")
        batch = cpp.llama_batch_init(options.n_batch, 0, 1)

        def read(rows: Rows) -> Logits:
            cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
            self._fill(batch, rows, 0, last_only=False)
            if code := cpp.llama_decode(context, batch):
                raise RunError(f"llama.cpp's decode failed with {code}")
            one = (cpp.llama_get_logits_ith(context, i) for i in range(batch.n_tokens))
            return np.stack([np.ctypeslib.as_array(logits, (self.n_vocab,)).copy() for logits in one])

        return read

    def generation(self, prompts: Rows, n_new: int) -> Work:
        """Continue every prompt by `n_new` tokens; returns them as a list of lists."""
        cpp, n_rows, n_prompt = self.cpp, len(prompts), len(prompts[0])
        options = cpp.llama_context_default_params()
        options.n_ctx = n_rows * -(-(n_prompt + n_new) // 256) * 256
        options.n_batch = max(512, n_rows * n_prompt)
        options.n_seq_max = n_rows
        options.n_threads = options.n_threads_batch = self.threads
        context = cpp.llama_init_from_model(self.model, options)
        if not context:
            raise RunError(f"llama.cpp makes no context for {n_rows} sequences of {n_prompt + n_new} tokens")
        batch = cpp.llama_batch_init(options.n_batch, 0, 1)

        def run(tokens: Rows, start: int) -> list[int]:
            """The most probable token after each row, given that `start` tokens of each are in its cache."""
            lasts = self._fill(batch, tokens, start, last_only=True)
            if code := cpp.llama_decode(context, batch):
                raise RunError(f"llama.cpp's decode failed with {code}")
            logits = (cpp.llama_get_logits_ith(context, i) for i in lasts)
            return [int(np.ctypeslib.as_array(one, (self.n_vocab,)).argmax()) for one in logits]

        def generate() -> list[list[int]]:
            cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
            last = run(prompts, 0)
            rows: list[list[int]] = [[] for _ in prompts]
            for step in range(n_new):
                for row, token in zip(rows, last, strict=True):
                    row.append(token)
                if step < n_new - 1:
                    last = run([[token] for token in last], n_prompt + step)
            return rows

        return generate

    @staticmethod
    def _fill(batch: Any, tokens: Rows, start: int, *, last_only: bool) -> list[int]:
        """Put these rows into the batch, `start` tokens of each being in the cache; returns where each row ends."""
        places = [(row, j) for row, ids in enumerate(tokens) for j in range(len(ids))]
        ends = [i for i, (row, j) in enumerate(places) if j == len(tokens[row]) - 1]
        batch.n_tokens = len(places)
        for i, (row, j) in enumerate(places):
            batch.token[i], batch.pos[i] = tokens[row][j], start + j
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = not last_only or j == len(tokens[row]) - 1
        return ends
