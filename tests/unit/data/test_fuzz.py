"""Random damage to files of every kind: the readers count it, refuse it with DataError, or were right to read on."""

import json
import random

import pytest

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.sources import read_chats, read_documents
from sobre.errors import DataError

TEXTS = [f"row {i} é中 \u2028 {'x' * (i % 40)} </think>" for i in range(40)]
CHATS = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "a"}]} for t in TEXTS]
NAMES = [f"a.{kind}{packed}" for kind in ("txt", "md", "jsonl", "parquet") for packed in ("", ".gz", ".zst")]


def damage(data: bytes, rng: random.Random) -> bytes:
    at, other = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return rng.choice(
        [
            lambda: data[:at],
            lambda: data[at:],
            lambda: data[:at] + data[other:],
            lambda: data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at + 1 :],
            lambda: data[:at] + bytes([data[at % len(data)] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
            lambda: data[:at] + rng.choice([b"\0", b"\n", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"]) + data[at:],
            lambda: data + data[at:other],
        ]
    )()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_damaged_files_never_crash_and_never_lose_rows_in_silence(write, make_parquet, name):
    rng = random.Random(name)
    if ".parquet" in name:
        inner = make_parquet({"text": TEXTS, "messages": [row["messages"] for row in CHATS]})
    elif ".jsonl" in name:
        inner = b"".join(json.dumps({"text": t, **c}).encode() + b"\n" for t, c in zip(TEXTS, CHATS, strict=True))
    else:
        inner = "\n\n".join(TEXTS).encode()
    for _ in range(60):
        before_packing = rng.random() < 0.5
        path = write(name, damage(inner, rng) if before_packing else inner)
        if not before_packing:
            path.write_bytes(damage(path.read_bytes(), rng))
        for read in (read_documents, read_chats):
            events = Events("count")
            good = list(read([path], DataConfig(), events))
            if events.n_bad:
                with pytest.raises(DataError, match="a\\."):
                    list(read([path], DataConfig(), Events("refuse")))
            else:
                assert good
                assert list(read([path], DataConfig(), Events("refuse"))) == good
            for item in good:
                json.dumps(getattr(item, "text", None) or item.messages, ensure_ascii=False).encode()
