"""Random numbers by name: every choice draws from a key made of what it is for, never from a global generator."""

from hashlib import blake2b


def key_u64(*parts: int | str) -> int:
    """A number of 64 bits that depends on every part, its type and its place, and on nothing else.

    Example: torch.Generator().manual_seed(key_u64(run_seed, "rl", step))
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        text = f"{'i' if isinstance(part, int) else 's'}{part}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)  # the length keeps ("ab", "c") and ("a", "bc") apart
    return int.from_bytes(digest.digest(), "little")
