"""Which tokens of a chat are trained when the layout is a template made elsewhere: what the model would have written.

A template says where a turn begins by its generation prompt, and how it ends by the chat with the turn in it. What lies
between is the assistant's: thought, answer, calls, and the token that ends the turn. The prompt is that of a thinking
model where the turn has a thought, and of one that does not think where it has none, so that a part which the prompt
gives (an empty thought, with Qwen3) is not trained.

Templates drop the thoughts of earlier turns. So turns share a sample only while each prompt begins with what was there
before; else a turn gets a sample of its own, the chat up to it: exactly what the model is asked later.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from sobre.errors import DataError
from sobre.tokenizer.chat import Message, Piece, split_thought

Render = Callable[[Sequence[Message], bool, bool], list[Piece]]
"""(messages, whether the generation prompt follows, whether it is that of a thinking model)"""


def samples(messages: Sequence[Message], render: Render) -> list[list[Piece]]:
    """The chat as samples, their pieces marked where they are trained; every turn of the assistant is trained once.

    Raises DataError for a template that contradicts itself or drops a thought that was to be learned.
    """
    found: list[list[Piece]] = []
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        prompt, written = _turn(messages[: i + 1], render)
        context = _after(prompt, found[-1]) if found else None
        if context is None:
            found.append([*prompt, *written])
        else:
            found[-1] += [*context, *written]
    return found


def _turn(messages: Sequence[Message], render: Render) -> tuple[list[Piece], list[Piece]]:
    """The prompt of the last message, and what the assistant writes after it, to be trained."""
    index = len(messages) - 1
    thought, _ = split_thought(messages[-1], index)
    whole = render(messages, False, True)
    for thinking in (bool(thought), not thought):
        prompt = render(messages[:-1], True, thinking)
        written = _after(whole, prompt)
        if written is None:
            continue
        if thought and thought not in "".join(piece.text for piece in written):
            raise DataError(f"the model's chat template drops the thought of message {index}; it cannot be learned")
        ends = [place for place, piece in enumerate(written) if piece.special]
        until = ends[-1] + 1 if ends else len(written)  # a line end after the last token is the template's
        return prompt, [replace(piece, trained=True) for piece in written[:until]]
    raise DataError(
        f"the model's chat template contradicts itself at message {index}: a chat with the answer does not begin with"
        " the prompt for it, so what the assistant wrote cannot be told apart"
    )


def _after(whole: Sequence[Piece], start: Sequence[Piece]) -> list[Piece] | None:
    """What follows `start` in `whole`; None when it does not begin so."""
    left, begun = _joined(whole), _joined(start)
    for place, piece in enumerate(begun):
        if place >= len(left) or left[place].special != piece.special:
            return None
        if left[place].text == piece.text:
            continue
        if piece.special or place + 1 < len(begun) or not left[place].text.startswith(piece.text):
            return None
        return [Piece(left[place].text.removeprefix(piece.text)), *left[place + 1 :]]
    return left[len(begun) :]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same, unmarked, text in one piece between special tokens."""
    found: list[Piece] = []
    for special, group in groupby(pieces, key=lambda piece: piece.special):
        texts = [piece.text for piece in group]
        found += [Piece(text, special=True) for text in texts] if special else [Piece("".join(texts))]
    return found
