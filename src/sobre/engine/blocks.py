"""The cache's memory as blocks: who holds which, and which hold entries worth finding again. Pure Python.

A full block is known by a digest of its tokens, of all tokens before them and of the requester's cache key, so equal
prefixes are found block by block, and nobody finds what another key computed. The digest is BLAKE2b: nobody can make
two prefixes meet. A full block is never written again; several rows may hold it. Blocks that nobody holds stay findable
until memory is needed; the least recently released one goes first, ends of a prefix before its beginning.

The last, half full block of a context that has ended is known in the same way, by the tokens that are in it. Who finds
it copies it into a block of its own and goes on there.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def root(cache_key: str) -> bytes:
    """What the digest of a first block builds on."""
    return blake2b(cache_key.encode(), digest_size=16).digest()


def digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Of a block with these tokens, given the digest of the block before it."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """`n_blocks` blocks; `take` and `share` give holds on them, `release` gives them back."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._holds = [0] * n_blocks
        self._free = list(range(n_blocks - 1, -1, -1))  # the lowest first, so that little memory is ever touched
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._half_full: set[int] = set()
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def n_available(self) -> int:
        """Blocks that `take` can give."""
        return len(self._free) + len(self._idle)

    def take(self, n: int) -> list[int]:
        """Hold `n` blocks with nothing in them; idle ones are forgotten for it where need be."""
        assert n <= self.n_available, f"{n} blocks asked, {self.n_available} available"
        blocks = []
        for _ in range(n):
            if not self._free:
                oldest, _ = self._idle.popitem(last=False)
                del self._block_of[self._digest_of.pop(oldest)]
                self._half_full.discard(oldest)
                self._free.append(oldest)
            block = self._free.pop()
            self._holds[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more hold on each of these blocks."""
        for block in blocks:
            self._holds[block] += 1
            self._idle.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one hold on each, the end of the prefix first."""
        for block in reversed(blocks):
            assert self._holds[block] > 0, f"block {block} is not held"
            self._holds[block] -= 1
            if self._holds[block]:
                continue
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def known(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning of these digests; no hold is taken."""
        blocks = []
        for wanted in digests:
            block = self._block_of.get(wanted)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def half_full(self, before: bytes, tokens: Sequence[int]) -> tuple[int, int] | None:
        """(block, how many) of the half full block with the most of these tokens, its first ones; no hold is taken."""
        for n in range(len(tokens), 0, -1):
            block = self._block_of.get(digest(before, tokens[:n]))
            if block is not None:
                return block, n
        return None

    def n_idle(self, blocks: Iterable[int]) -> int:
        """How many of these nobody holds: sharing them makes fewer available."""
        return sum(block in self._idle for block in blocks)

    def register(self, block: int, key: bytes, *, half_full: bool = False) -> None:
        """A held block is full and computed, or half full and never to be written again: others may find it. The first
        block of a digest stays the one."""
        assert self._holds[block] > 0, f"block {block} is not held"
        if key not in self._block_of and block not in self._digest_of:
            self._block_of[key], self._digest_of[block] = block, key
            if half_full:
                self._half_full.add(block)

    def prefixes(self) -> dict[bytes, int]:
        """Every known full block by its digest, the ones to be forgotten first before the others."""
        held = [block for block in self._block_of.values() if block not in self._idle]
        return {self._digest_of[block]: block for block in [*self._idle, *held] if block not in self._half_full}

    def adopt(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks for prefixes that were computed elsewhere, the ones to be forgotten first before the others: known and
        idle, as after a release. There must be as many available."""
        blocks = self.take(len(keys))
        for block, key in zip(blocks, keys, strict=True):
            self.register(block, key)
            self.release([block])
        return blocks

    def forget(self) -> None:
        """No block can be found any more: other weights computed them."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._block_of.clear()
        self._digest_of.clear()
        self._half_full.clear()

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """The invariants: every block is free, idle or held by exactly the rows given."""
        holds = [0] * self.n_blocks
        for blocks in held:
            for block in blocks:
                holds[block] += 1
        assert holds == self._holds, "the holds on blocks are not those of the rows"
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & idle, "a block is free and idle at once"
        unheld = {block for block, n in enumerate(holds) if not n}
        assert free | idle == unheld, f"blocks lost or held and free: {sorted((free | idle) ^ unheld)}"
        assert idle <= self._digest_of.keys(), "an idle block has no digest"
        assert self._half_full <= idle, "a half full block that others may find is held, and may be written"
        assert {block: key for key, block in self._block_of.items()} == self._digest_of, "digests and blocks disagree"
