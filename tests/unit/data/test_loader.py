"""Shards on disk, the keyed order, and rows that do not depend on how they are asked for."""

import json

import numpy as np
import pytest

from sobre.data.loader import Order, PackedLoader
from sobre.data.order import permute
from sobre.data.shards import ShardWriter, TokenShards
from sobre.errors import DataError

EOS = 1


def make_shards(folder, documents, vocab_size=1000, shard_tokens=50) -> TokenShards:
    writer = ShardWriter(folder, vocab_size, EOS, shard_tokens)
    for document in documents:
        writer.add(document)
    writer.close()
    return TokenShards.open(folder)


def counted_documents(n_tokens: int) -> list[list[int]]:
    """Documents whose ids count up, so that a row says where it is from."""
    ids, documents = iter(range(2, n_tokens)), []
    while document := [token for token, _ in zip(ids, range(7 + len(documents) % 5), strict=False)]:
        documents.append(document)
    return documents


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_shards_hold_the_documents_each_ended_by_eos(tmp_path, vocab_size, dtype):
    documents = [[5, 6], [], [7], [vocab_size - 1] * 120]
    shards = make_shards(tmp_path, documents, vocab_size)
    row = [token for document in documents for token in (*document, EOS)]
    assert shards.read(0, shards.n_tokens).tolist() == row
    assert shards.read(45, 103).tolist() == row[45:103]
    assert shards.read(3, 3).tolist() == []
    assert [row[end - 1] for end in shards.ends] == [EOS] * 4
    assert (shards.n_documents, len(shards.files), shards.files[0].dtype) == (4, 3, dtype)
    assert isinstance(shards.files[0], np.memmap)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, 100, EOS)
    for wrong in (100, -1):
        with pytest.raises(DataError, match="vocabulary ends at 99"):
            writer.add([wrong])


def test_damaged_or_unfinished_shards_do_not_open(tmp_path):
    make_shards(tmp_path / "a", [[5] * 70])
    for name in ("tokens-00000.bin", "tokens-00001.bin", "documents.bin"):
        path = tmp_path / "a" / name
        good = path.read_bytes()
        for bad in (good[:-1], good + b"\0", bytes([good[0] ^ 1]) + good[1:]):
            path.write_bytes(bad)
            with pytest.raises(DataError, match=f"{name} is not as it was written"):
                TokenShards.open(tmp_path / "a")
        path.unlink()
        with pytest.raises(DataError, match=f"{name} is missing"):
            TokenShards.open(tmp_path / "a")
        path.write_bytes(good)
    with pytest.raises(DataError, match="holds token shards already"):
        ShardWriter(tmp_path / "a", 100, EOS)
    for text in ("", "{}", json.dumps({"schema": 2})):
        (tmp_path / "a" / "index.json").write_text(text)
        with pytest.raises(DataError, match=r"index\.json"):
            TokenShards.open(tmp_path / "a")
    unfinished = ShardWriter(tmp_path / "b", 100, EOS, 10)
    unfinished.add([5] * 30)
    with pytest.raises(DataError, match=r"index\.json is missing"):
        TokenShards.open(tmp_path / "b")
    with pytest.raises(DataError, match="no document"):
        ShardWriter(tmp_path / "c", 100, EOS).close()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_the_keyed_order_is_a_permutation(n):
    order = permute(np.arange(n), n, 3, 0)
    assert sorted(order.tolist()) == list(range(n))
    assert [int(permute(np.array([i]), n, 3, 0)[0]) for i in range(min(n, 50))] == order[:50].tolist()


def test_other_keys_give_other_orders_without_pattern():
    n = 2000
    orders = [permute(np.arange(n), n, *key) for key in ((0, 0), (0, 1), (1, 0))]
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.1
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1
        assert all((order == other).mean() < 0.01 for other in orders[i + 1 :])


def test_every_token_but_the_rest_is_a_target_once_an_epoch(tmp_path):
    shards = make_shards(tmp_path, counted_documents(500))
    loader = PackedLoader(shards, seq_len=16, seed=7)
    rows = loader.take(loader.n_rows)
    whole = shards.read(0, shards.n_tokens)
    assert rows.shape == (loader.n_rows, 17)
    assert rows.dtype == np.int64
    order = np.argsort([int(np.flatnonzero((whole[:-16] == row[0]) & (whole[1:-15] == row[1]))[0]) for row in rows])
    targets = rows[order][:, 1:].reshape(-1)
    np.testing.assert_array_equal(targets, whole[1 : 1 + loader.n_rows * 16])
    assert shards.n_tokens - 1 - len(targets) < 16


def test_rows_do_not_depend_on_how_many_are_asked_for(tmp_path):
    shards = make_shards(tmp_path, counted_documents(400))
    at_once = PackedLoader(shards, 8, seed=1).take(150)
    loader, parts, sizes = PackedLoader(shards, 8, seed=1), [], [1, 2, 5, 0, 30, 100, 12]
    for size in sizes:
        parts.append(loader.take(size))
    np.testing.assert_array_equal(np.concatenate(parts), at_once)
    assert loader.n_rows < 150  # so the order went over into further epochs
    assert loader.state() == {"epoch": 150 // loader.n_rows, "row": 150 % loader.n_rows}


def test_a_restored_loader_goes_on_where_it_was(tmp_path):
    shards = make_shards(tmp_path, counted_documents(400))
    loader = PackedLoader(shards, 8, seed=1)
    loader.take(loader.n_rows + 5)
    state = json.loads(json.dumps(loader.state()))
    expected = loader.take(20)
    again = PackedLoader(TokenShards.open(tmp_path), 8, seed=1)
    again.restore(state)
    np.testing.assert_array_equal(again.take(20), expected)
    assert not np.array_equal(PackedLoader(shards, 8, seed=2).take(20), PackedLoader(shards, 8, seed=1).take(20))


def test_the_order_changes_with_the_epoch():
    order = Order(50, seed=0)
    first, second = order.take(50), order.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("state", [{"epoch": 0, "row": 50}, {"epoch": -1, "row": 0}, {"epoch": 0, "row": -1}])
def test_a_place_that_does_not_exist_is_refused(state):
    with pytest.raises(DataError, match="50 rows"):
        Order(50, seed=0).restore(state)


def test_too_little_text_for_one_row_says_how_much_is_needed(tmp_path):
    shards = make_shards(tmp_path, [[5] * 9])
    with pytest.raises(DataError, match=r"10 tokens; one row of data\.seq_len = 10 needs 11: .* at most 9"):
        PackedLoader(shards, 10, seed=0)
    assert PackedLoader(shards, 9, seed=0).take(3).shape == (3, 10)
