"""Where a prompt leaves a thought open, so that the answer begins inside it."""

from collections.abc import Sequence

from sobre.errors import CheckpointError
from sobre.tokenizer.tokenizer import Tokenizer


def think_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens around a thought; (-1, -1) in a vocabulary that has none."""
    try:
        return tokenizer.think_open_id, tokenizer.think_close_id
    except CheckpointError:
        return -1, -1


def opens_thought(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether the prompt leaves a thought open."""
    open_id, close_id = think_ids(tokenizer)
    last = next((token for token in reversed(prompt_ids) if token in (open_id, close_id)), -1)
    return open_id >= 0 and last == open_id
