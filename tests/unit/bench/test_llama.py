"""What the llama.cpp side hands over: tokens, positions and sequences, against a llama.cpp of a few lines."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

from sobre.bench.llama import Llama, quantised
from sobre.errors import RunError

N_VOCAB = 23


class FakeCpp:
    """Remembers the tokens of every sequence; the next one is their sum, so a misplaced token changes all after it."""

    def __init__(self, loads=True):
        self.sequences, self.loads = {}, loads
        same = dict.fromkeys(("n_gpu_layers", "n_ctx", "n_batch", "n_seq_max", "n_threads", "n_threads_batch"), 0)
        self.llama_model_default_params = self.llama_context_default_params = lambda: SimpleNamespace(**same)
        self.llama_backend_init = lambda: None
        self.llama_model_load_from_file = lambda path, options: self.loads and "model"
        self.llama_model_get_vocab = self.llama_get_memory = lambda of: of
        self.llama_vocab_n_tokens = lambda vocab: N_VOCAB
        self.llama_memory_clear = lambda memory, data: self.sequences.clear()

    def llama_init_from_model(self, model, options):
        self.options = options
        return "context"

    def llama_batch_init(self, n, embd, n_seq_max):
        one = lambda: [None]  # noqa: E731
        columns = {name: [None] * n for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[one() for _ in range(n)], **columns)

    def llama_decode(self, context, batch):
        self.logits = {}
        for i in range(batch.n_tokens):
            tokens = self.sequences.setdefault(batch.seq_id[i][0], [])
            assert (batch.pos[i], batch.n_seq_id[i]) == (len(tokens), 1)
            tokens.append(batch.token[i])
            if batch.logits[i]:
                self.logits[i] = (ctypes.c_float * N_VOCAB)(*[0.0] * (sum(tokens) % N_VOCAB), 1.0)
        return 0

    def llama_get_logits_ith(self, context, i):
        return self.logits[i]


def test_every_row_goes_on_from_its_own_tokens_at_its_own_positions(tmp_path, monkeypatch):
    cpp = FakeCpp()
    monkeypatch.setitem(sys.modules, "llama_cpp", cpp)
    prompts = [[1, 2, 3], [5, 0, 9], [7, 7, 7]]
    work = Llama(tmp_path / "m.gguf", threads=2).generation(prompts, 4)
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(4):
            row.append(sum(row) % N_VOCAB)
        expected.append(row[3:])
    assert work() == expected
    assert work() == expected  # a second turn begins with an empty cache
    assert (cpp.options.n_seq_max, cpp.options.n_ctx, cpp.options.n_threads) == (3, 3 * 256, 2)


def test_a_file_that_llama_cpp_refuses_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", FakeCpp(loads=False))
    with pytest.raises(RunError, match=r"llama.cpp does not load .*m\.gguf"):
        Llama(tmp_path / "m.gguf", threads=1)


def test_llama_cpp_makes_the_four_bits_itself_and_says_when_it_cannot(tmp_path, monkeypatch):
    asked = []

    def quantize(source, target, options):
        asked.append((source.decode(), target.decode(), options.ftype, options.nthread))
        return len(asked) - 1

    made = SimpleNamespace(
        llama_model_quantize_default_params=lambda: SimpleNamespace(ftype=0, nthread=0), llama_model_quantize=quantize
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", made)
    quantised(tmp_path / "a", tmp_path / "b", 2)
    assert asked == [(f"{tmp_path}/a", f"{tmp_path}/b", 2, 2)]
    with pytest.raises(RunError, match="does not quantise .*a: code 1"):
        quantised(tmp_path / "a", tmp_path / "b", 2)


@pytest.mark.parametrize("exact", [False, True])
def test_reading_gives_the_logits_after_every_token_of_every_row(tmp_path, monkeypatch, exact):
    cpp = FakeCpp()
    monkeypatch.setitem(sys.modules, "llama_cpp", cpp)
    rows = [[1, 2, 3], [5], [7, 7]]
    read = Llama(tmp_path / "m.gguf", threads=2).reading(300, 3, exact=exact)
    for _ in range(2):  # the second time, too, every row begins anew
        logits = read(rows)
        assert [row.argmax() for row in logits] == [sum(ids[: i + 1]) for ids in rows for i in range(len(ids))]
    assert logits.shape == (6, N_VOCAB)
    assert (cpp.options.n_seq_max, cpp.options.n_ctx, cpp.options.n_batch) == (3, 3 * 512, 900)
    assert hasattr(cpp.options, "type_k") is exact
