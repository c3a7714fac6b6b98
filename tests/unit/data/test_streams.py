"""Lines of packed and plain files, whatever the blocks they arrive in."""

import random

import pytest

from sobre.data import streams


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block", [1, 3, 7, 1000])
@pytest.mark.slow
def test_lines_do_not_depend_on_the_blocks(write, monkeypatch, packed, block):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    monkeypatch.setattr(streams, "COMPRESSED_BYTES", block)
    rng = random.Random(block)
    for _ in range(20):
        data = b"".join(rng.choices([b"a", b"bcd", b"\n", b"\r\n", b"\x0b", "\u2028".encode()], k=rng.randint(0, 40)))
        found = list(streams.lines(write("a.jsonl" + packed, data), limit=6))
        expected = data.split(b"\n")
        expected = expected if expected[-1] else expected[:-1]
        assert found == [(i, line if len(line) <= 6 else None) for i, line in enumerate(expected, 1)]


def test_a_whole_file_may_be_as_long_as_the_limit_and_no_longer(write):
    path = write("a.txt.gz", b"12345")
    assert streams.read_all(path, limit=5) == b"12345"
    with pytest.raises(streams.TooLong):
        streams.read_all(path, limit=4)
