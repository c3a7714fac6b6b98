"""The shared text, where it is beside the repository: read, tokenized and packed as it is."""

import gzip
import json
from pathlib import Path

import pytest

from sobre.data.config import DataConfig
from sobre.data.corpus import prepare, training_texts
from sobre.data.events import Events
from sobre.data.sources import read_chats, read_documents
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3].parent / "shared/data"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not beside the repository")


def test_the_parquet_rows_are_the_first_jsonl_rows():
    cfg = DataConfig()
    rows = list(read_documents([SHARED / "pretrain/val_100.parquet"], cfg))
    lines = list(read_documents([SHARED / "pretrain/val.jsonl.gz"], cfg))
    assert len(rows) == 100
    assert [(d.text, d.source, d.lang) for d in rows] == [(d.text, d.source, d.lang) for d in lines[:100]]


@pytest.mark.slow
def test_every_byte_of_real_text_comes_into_the_shards(tmp_path):
    path, cfg, events = tmp_path / "english.jsonl", DataConfig(), Events()
    lines = gzip.decompress((SHARED / "pretrain/train_en.jsonl.gz").read_bytes()).split(b"\n")[:2500]
    path.write_bytes(b"\n".join(lines))
    tokenizer = Tokenizer.train(training_texts(read_documents([path], cfg), cfg), TokenizerConfig())
    corpus = prepare(read_documents([path], cfg, events), tokenizer, tmp_path / "corpus", cfg, events=events)
    texts = [json.loads(line)["text"] for line in lines if line]
    assert corpus.report["train"]["documents"] + corpus.report["held_out"]["documents"] == len(texts)
    assert corpus.report["train"]["size_bytes"] + corpus.report["held_out"]["size_bytes"] == sum(
        len(text.encode()) for text in texts
    )
    held_out = {text for of_source in corpus.held_out.values() for text in of_source}
    train = iter([text for text in texts if text not in held_out])
    for start, end in zip([0, *corpus.shards.ends[:20]], corpus.shards.ends[:21], strict=False):
        assert tokenizer.decode(corpus.shards.read(start, end - 1).tolist()) == next(train)


@pytest.mark.slow
def test_the_shared_chats_are_read_or_counted():
    events = Events("count")
    files = sorted((SHARED / "sft").glob("*.jsonl.gz"))
    n_lines = sum(line != b"" for file in files for line in gzip.decompress(file.read_bytes()).split(b"\n"))
    n_chats = sum(1 for _ in read_chats(files, DataConfig(), events))
    assert n_chats + events.n_bad == n_lines
    assert n_chats > 0.9 * n_lines
