"""sobre bench quality: what do rounded weights and caches cost, by our path and by llama.cpp's?

One trained model in every form that it is served in: ours in float32, bfloat16, 8 and 4 bits, with a cache of 8 bits;
llama.cpp on GGUF files of the same weights (f16 and q8_0 by us, q4_0 by llama.cpp itself), where it is installed.
All of them read the same windows of the same text (eval/bits.py). A form's figures: bits per byte; the mean over tokens
of KL(p, q) in nats, p being our bfloat16 model's distribution of the next token, and our float32 model's, and q the
form's; the share of tokens whose most probable next token is that of bfloat16.

Checked, or there is no result: llama.cpp on an f32 file, with a cache of 32 bits, gives our float32 model's
probabilities; what the others lose is then lost by rounding and not by the conversion.

Shapes: N scored tokens of a batch of windows, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from sobre.bench.config import QualityBench
from sobre.bench.llama import LACKS, Llama, quantised
from sobre.bench.result import Result, checked
from sobre.bench.timing import Say
from sobre.config.load import to_dict
from sobre.data.config import DataConfig
from sobre.data.sources import Document, read_documents
from sobre.distill.divergence import kl
from sobre.errors import CheckpointError, ConfigError, DataError
from sobre.eval.bits import BATCH_TOKENS, Window, all_windows, batches, encoded, first_of_each, logits_of
from sobre.kernels.coded import Bits
from sobre.models.cache import Int8Cache, PagedCache
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.models.gguf.export import save_gguf
from sobre.models.gguf.file import Type
from sobre.models.hub import resolve
from sobre.models.quantised import quantised as in_bits
from sobre.tokenizer.tokenizer import Tokenizer

EXACT, BASE, F32 = "sobre float32", "sobre bfloat16", "llama.cpp f32"
FILES: tuple[Type, ...] = ("f32", "f16", "q8_0")
BITS: tuple[Bits, ...] = ("int8", "int4")
SAME = 1e-4
"""KL in nats between llama.cpp's float32 and ours, at most."""
Reader = Callable[[Sequence[Window]], Tensor]
"""Logits after every token of the windows, one after the other: N x V."""


@dataclass
class Sums:
    """What a form of the model came to so far."""

    bits: float = 0.0
    kl_to_bfloat16: float = 0.0
    kl_to_float32: float = 0.0
    n_same: int = 0

    def add(self, logp_NV: Tensor, exact_NV: Tensor, base_NV: Tensor, targets_N: Tensor) -> None:
        """Log-probabilities of a batch, beside those of our float32 and bfloat16 models."""
        self.bits -= float(logp_NV.gather(-1, targets_N[:, None]).double().sum()) / math.log(2)
        self.kl_to_bfloat16 += float(kl(base_NV, logp_NV).double().sum())
        self.kl_to_float32 += float(kl(exact_NV, logp_NV).double().sum())
        self.n_same += int((logp_NV.argmax(-1) == base_NV.argmax(-1)).sum())

    def over(self, n_tokens: int, n_bytes: int) -> dict[str, float | int]:
        """The figures of the result."""
        return {
            "bits_per_byte": self.bits / n_bytes,
            "kl_to_bfloat16": self.kl_to_bfloat16 / n_tokens,
            "kl_to_float32": self.kl_to_float32 / n_tokens,
            "same_best": self.n_same / n_tokens,
            "tokens": n_tokens,
            "bytes": n_bytes,
        }


@torch.inference_mode()
def bench(cfg: QualityBench, say: Say) -> Result:
    """Open every form of the model, let all of them read, compare."""
    torch.set_num_threads(cfg.threads)
    folder = resolve(cfg.model)
    tokenizer, documents = Tokenizer.load(folder), _documents(cfg)
    exact = load_model(folder, dtype=torch.float32)
    window = min(cfg.window, exact.cfg.max_len)
    ids = encoded(tokenizer, documents)
    pieces = all_windows(ids, start_id=tokenizer.eos_id, window=window)
    notes: list[str] = []
    with TemporaryDirectory() as place:
        readers = our_readers(exact, load_model(folder, dtype=torch.bfloat16), notes)
        readers |= llama_readers(exact, folder, Path(place), window, cfg.threads, notes)
        sums = {name: Sums() for name in readers}
        n_done = 0
        for batch in batches(pieces):
            _read(batch, readers, sums)
            n_done += sum(piece.n_scored for piece in batch)
            say(f"{n_done:,} of {sum(map(len, ids)):,} tokens read in {len(readers)} forms")
    n_bytes = sum(len(document.text.encode()) for document in documents)
    found = {name: one.over(n_done, n_bytes) for name, one in sums.items()}
    check = []
    if F32 in found:
        what = f"{F32}, cache of 32 bits: KL in nats a token to {EXACT}"
        check = [checked(what, found.pop(F32)["kl_to_float32"], SAME)]
    return Result("quality", "quality", to_dict(cfg), cfg.threads, check, {"contestants": found}, tuple(notes))


def our_readers(exact: Decoder, base: Decoder, notes: list[str]) -> dict[str, Reader]:
    """Our forms of the model, given in float32 and bfloat16; one that its shapes rule out is named in `notes`."""
    forms: dict[str, tuple[Decoder, type[PagedCache] | None]] = {
        EXACT: (exact, None),
        BASE: (base, None),
        "sobre int8 cache": (base, Int8Cache),
    }
    for bits in BITS:
        try:
            rounded = in_bits(exact, bits)
        except ConfigError as error:
            notes.append(f"sobre {bits} is left out: {error}")
            continue
        forms |= {f"sobre {bits}": (rounded, None), f"sobre {bits}, int8 cache": (rounded, Int8Cache)}
    return {name: _ours(model, cache) for name, (model, cache) in forms.items()}


def _ours(model: Decoder, cache: type[PagedCache] | None) -> Reader:
    return lambda batch: logits_of(model, batch, cache)


def llama_readers(
    exact: Decoder, tokenizer: Path, place: Path, window: int, threads: int, notes: list[str]
) -> dict[str, Reader]:
    """llama.cpp's forms, or a note why there are none. Its files may go once they are loaded."""
    if LACKS:
        notes.append(LACKS)
        return {}
    try:
        for form in FILES:
            save_gguf(exact, tokenizer, place / f"{form}.gguf", type=form)
    except CheckpointError as error:
        notes.append(f"llama.cpp is left out: {error}")
        return {}
    quantised(place / "f16.gguf", place / "q4_0.gguf", threads)
    found = {}
    for file in (*FILES, "q4_0"):
        name = f"llama.cpp {file}"
        found[name] = _theirs(Llama(place / f"{file}.gguf", threads), window, exact=name == F32)
    return found


def _theirs(llama: Llama, window: int, *, exact: bool) -> Reader:
    n_rows = max(1, BATCH_TOKENS // window)
    read = llama.reading(window, n_rows, exact=exact)

    def reader(batch: Sequence[Window]) -> Tensor:
        some = [batch[i : i + n_rows] for i in range(0, len(batch), n_rows)]
        return torch.cat([torch.from_numpy(read([piece.ids for piece in rows])) for rows in some])

    return reader


def _read(batch: Sequence[Window], readers: dict[str, Reader], sums: dict[str, Sums]) -> None:
    """Let every form read these windows, and add up what it makes of their scored tokens."""
    scored_N = torch.cat([torch.arange(len(w.ids)) >= len(w.ids) - w.n_scored for w in batch])
    targets_N = torch.tensor([i for piece in batch for i in piece.targets])[scored_N]
    exact_NV, base_NV = (readers[name](batch)[scored_N].log_softmax(-1) for name in (EXACT, BASE))
    for name, reader in readers.items():
        known = {EXACT: exact_NV, BASE: base_NV}.get(name)
        logp_NV = reader(batch)[scored_N].log_softmax(-1) if known is None else known
        sums[name].add(logp_NV, exact_NV, base_NV, targets_N)


def _documents(cfg: QualityBench) -> list[Document]:
    rows = [row for row in read_documents(cfg.text, DataConfig()) if not cfg.lang or row.lang == cfg.lang]
    if not rows:
        raise DataError(f"--text={' '.join(cfg.text)} holds no row of lang={cfg.lang!r}")
    return [replace(row, text=row.text[: cfg.chars or None]) for row in first_of_each(rows, cfg.documents)]
