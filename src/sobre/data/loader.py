"""Packed rows in a fixed order. The state is two integers, and the order knows nothing of batches.

Row r holds tokens r*T .. r*T+T of the shards (T = seq_len): T inputs and, one further, T targets; so every token is a
target once an epoch, but for the fewer than T that are left at the end. Each epoch has its own keyed permutation.

Shapes: B rows, T tokens of a row.
"""

from typing import TypedDict

import numpy as np

from sobre.data.order import permute
from sobre.data.shards import TokenShards
from sobre.errors import DataError


class LoaderState(TypedDict):
    """The place in the order: rows (or chats) already taken of an epoch."""

    epoch: int
    row: int


AHEAD = 1024
"""Items whose places are worked out together: one at a time they would cost a small step a tenth of its time."""


class Order:
    """Places of an endless sequence of epochs over n items."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self._seed = n, seed
        self._epoch = self._row = 0
        self._known = (-1, -1), np.empty(0, np.int64)
        """(epoch, block of `AHEAD` rows) and the items in it."""

    def take(self, count: int) -> np.ndarray:
        """The next `count` items."""
        parts = []
        while count > 0:
            block = self._block()[self._row % AHEAD :]
            some = min(count, len(block))
            parts.append(block[:some])
            self._row, count = self._row + some, count - some
            if self._row == self.n:
                self._epoch, self._row = self._epoch + 1, 0
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _block(self) -> np.ndarray:
        """The items of the block that the next row is in."""
        at = self._epoch, self._row // AHEAD
        if self._known[0] != at:
            rows = np.arange(at[1] * AHEAD, min((at[1] + 1) * AHEAD, self.n))
            self._known = at, permute(rows, self.n, self._seed, self._epoch)
        return self._known[1]

    def state(self) -> LoaderState:
        return {"epoch": self._epoch, "row": self._row}

    def restore(self, state: LoaderState) -> None:
        epoch, row = state["epoch"], state["row"]
        if epoch < 0 or not 0 <= row < self.n:
            raise DataError(f"the saved place epoch={epoch}, row={row} does not exist: an epoch has {self.n:,} rows")
        self._epoch, self._row = epoch, row


class PackedLoader:
    """Rows of consecutive tokens."""

    def __init__(self, shards: TokenShards, seq_len: int, seed: int) -> None:
        self.seq_len = seq_len
        self.n_rows = (shards.n_tokens - 1) // seq_len
        """Rows of an epoch."""
        if self.n_rows < 1:
            raise DataError(
                f"{shards.folder} holds {shards.n_tokens:,} tokens; one row of data.seq_len = {seq_len:,} needs"
                f" {seq_len + 1:,}: give more text, or rows of at most {max(1, shards.n_tokens - 1):,}"
            )
        self._shards, self._order = shards, Order(self.n_rows, seed)

    def take(self, n_rows: int) -> np.ndarray:
        """The next rows, tokens_BT of T = seq_len + 1; an epoch that ends goes over into the next."""
        starts = self._order.take(n_rows) * self.seq_len
        tokens_BT = np.empty((n_rows, self.seq_len + 1), np.int64)
        for row, start in zip(tokens_BT, starts.tolist(), strict=True):
            row[:] = self._shards.read(start, start + self.seq_len + 1)
        return tokens_BT

    def state(self) -> LoaderState:
        """Where the order is."""
        return self._order.state()

    def restore(self, state: LoaderState) -> None:
        """Go on from a saved place."""
        self._order.restore(state)
