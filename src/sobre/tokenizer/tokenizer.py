"""The tokenizer of a model: text to ids, chats to ids, ids to text.

Two back ends from one vocabulary. `_whole` is what the folder holds. `_plain` is the same without its added tokens, so
that no text, whatever it spells, can become a special token; special ids come from the chat layout alone.

A folder written elsewhere loads too when it is byte-level BPE; its chats go through its own template, or through the
layout of its release where it is DeepSeek's and brings none.
"""

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from sobre.errors import CheckpointError, DataError
from sobre.tokenizer import bpe, deepseek, folder, template, trained
from sobre.tokenizer.chat import TEMPLATE, Message, Piece, Tool, check, completion, is_ours, layout, split_thought
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.special import ASSISTANT, BOS, EOS, PAD, THINK_CLOSE, THINK_OPEN, USER

NO_TOKEN = "\ufffd".encode()
"""Shown for an id that no token has (models may pad their vocabulary)."""
MAX_KNOWN_UNITS = 2**20
"""Encoded units that are remembered."""


class Tokenizer:
    """Byte-level BPE with a chat layout."""

    def __init__(self, backend: tokenizers.Tokenizer, chat_template: str, bos: str, eos: str, pad: str) -> None:
        self._whole = backend
        description = json.loads(backend.to_str())
        self._plain = _without_added_tokens(description)
        self._known_units: dict[str, bytes] = {}
        self._has_units = bpe.has_our_borders(description)
        added = backend.get_added_tokens_decoder()
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes = _bytes_by_id(backend)
        self._template = TEMPLATE if is_ours(chat_template) else chat_template
        self._release = ""
        self._bos, self._eos, self._pad = bos, eos, pad
        self.vocab_size = max(self._bytes) + 1
        """One more than the largest id."""
        self.max_token_chars = max((len(text) for text in self._bytes.values()), default=1)
        """Most bytes of a token, so at least its characters."""

    @classmethod
    def train(cls, texts: Iterable[str], cfg: TokenizerConfig) -> Self:
        """Learn a vocabulary from (a sample of) `texts`."""
        return cls(bpe.train(texts, cfg), TEMPLATE, BOS, EOS, PAD)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja of a model folder."""
        found = cls(*folder.read(Path(path)))
        if not found._template:
            found._release = deepseek.which(folder.model_type(Path(path)), found._added)
        return found

    def save(self, path: Path | str, *, max_len: int = 0) -> None:
        """Write the files that `transformers.AutoTokenizer` reads; `max_len` is the longest sequence (0: not said)."""
        names = {"bos_token": self._bos, "eos_token": self._eos, "pad_token": self._pad}
        folder.write(Path(path), self._whole, self._template, names, max_len)

    @property
    def has_own_layout(self) -> bool:
        """Whether chats take our own layout, rather than a template that the folder brings."""
        return self._template == TEMPLATE

    @property
    def bos_id(self) -> int:
        return self._id(self._bos, "bos")

    @property
    def eos_id(self) -> int:
        return self._id(self._eos, "eos")

    @property
    def pad_id(self) -> int:
        return self._id(self._pad, "pad")

    def end_ids(self) -> dict[str, int]:
        """bos_token_id, eos_token_id and pad_token_id as a model's config names them; those that there are."""
        spelt = {"bos": self._bos, "eos": self._eos, "pad": self._pad}
        return {f"{name}_token_id": self._added[token] for name, token in spelt.items() if token in self._added}

    @property
    def user_id(self) -> int:
        return self._id(USER, "user")

    @property
    def assistant_id(self) -> int:
        return self._id(ASSISTANT, "assistant")

    @property
    def think_open_id(self) -> int:
        return self._id(THINK_OPEN, "think_open")

    @property
    def think_close_id(self) -> int:
        return self._id(THINK_CLOSE, "think_close")

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that text never becomes and `skip_special` leaves out."""
        return self._special_ids

    @property
    def special_texts(self) -> tuple[str, ...]:
        """How the special tokens are spelt."""
        return tuple(self._added)

    def check_fits(self, known: int, model: str) -> None:
        """Raise CheckpointError where a model of `known` tokens cannot have come with this tokenizer."""
        if self.vocab_size > known:
            raise CheckpointError(
                f"{model}: its tokenizer has {self.vocab_size:,} tokens and the model knows {known:,}; they do not"
                " belong together"
            )

    def vocabulary(self) -> dict[str, int]:
        """Every token as the vocabulary spells it, and its id."""
        return self._whole.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; a special token spelt in it stays text."""
        bpe.encode_utf8(text)
        return self._plain.encode(text, add_special_tokens=False).ids

    def find(self, special: str) -> int | None:
        """The id of a special token by its spelling; None when this vocabulary has none."""
        return self._added.get(special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_batch` as int32 arrays; what comes again is encoded once."""
        for text in texts:
            bpe.encode_utf8(text)
        if not self._has_units:
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, np.int32) for encoding in encodings]
        if len(self._known_units) > MAX_KNOWN_UNITS:
            self._known_units = {}
        known = self._known_units
        units = [bpe.units(text) for text in texts]
        new = list(set().union(*units).difference(known))
        encodings = self._plain.encode_batch_fast(new, add_special_tokens=False)
        known.update({unit: array("i", encoding.ids).tobytes() for unit, encoding in zip(new, encodings, strict=True)})
        return [np.frombuffer(b"".join([known[unit] for unit in of_text]), np.int32) for of_text in units]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self._special_ids)).decode(
            errors="replace"
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        return self._bytes.get(token_id, NO_TOKEN)

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool = False,
        thinking: bool = True,
        tools: Sequence[Tool] = (),
        continued: bool = False,
    ) -> list[int]:
        """Ids of a chat; with `generation_prompt` it ends where the assistant begins to think (or to answer), with
        `continued` inside its last message."""
        if continued:
            if self._template != TEMPLATE:
                raise DataError("this folder's own template closes every message; no answer can be continued in it")
            pieces = layout(messages, tools=tools, continued=True)
        elif self._template == TEMPLATE:
            pieces = layout(messages, generation_prompt=generation_prompt, thinking=thinking, tools=tools)
        else:
            pieces = self._foreign_pieces(messages, generation_prompt, thinking, tools)
        return self._ids(pieces)

    def render_with_mask(self, messages: Sequence[Message], *, train_from: int = 0) -> tuple[list[int], list[int]]:
        """Ids of a chat, and 1 where the loss counts: on what the assistant wrote from message `train_from` on."""
        return self.render_batch_with_mask([messages], train_from=[train_from])[0]

    def render_batch_with_mask(
        self, chats: Sequence[Sequence[Message]], *, train_from: Sequence[int]
    ) -> list[tuple[list[int], list[int]]]:
        """`render_with_mask` of many chats in our own layout, in parallel."""
        if self._template != TEMPLATE:
            raise DataError("this folder's template is not our own chat layout; render_trained is for such")
        return self._with_masks([layout(chat, train_from=at) for chat, at in zip(chats, train_from, strict=True)])

    def render_trained(self, messages: Sequence[Message]) -> list[tuple[list[int], list[int]]]:
        """A chat in the folder's own template as samples of ids, and 1 where the loss counts (tokenizer/trained.py)."""
        check(messages)
        return self._with_masks(trained.samples(messages, self._foreign_pieces))

    def _with_masks(self, layouts: Sequence[Sequence[Piece]]) -> list[tuple[list[int], list[int]]]:
        encoded = iter(self.encode_batch([piece.text for pieces in layouts for piece in pieces if not piece.special]))
        samples = []
        for pieces in layouts:
            ids, mask = [], []
            for piece in pieces:
                new = [self._id(piece.text)] if piece.special else next(encoded)
                ids += new
                mask += [int(piece.trained)] * len(new)
            samples.append((ids, mask))
        return samples

    def encode_completion(self, text: str) -> list[int]:
        """Ids of what a thinking model writes after the generation prompt, "thought </think> answer", and eos."""
        thought, answer = split_thought({"role": "assistant", "content": THINK_OPEN + text})
        return self._ids(completion(thought, answer))

    def _foreign_pieces(
        self, messages: Sequence[Message], generation_prompt: bool, thinking: bool, tools: Sequence[Tool] = ()
    ) -> list[Piece]:
        if self._release:
            options = {"generation_prompt": generation_prompt, "thinking": thinking}
            return deepseek.layout(self._release, messages, self._added, tools=tools, **options)
        if not self._template:
            raise CheckpointError("the model folder has no chat template, so it cannot hold a chat")
        return template.pieces(
            self._template,
            messages,
            self._added,
            add_generation_prompt=generation_prompt,
            bos_token=self._bos,
            eos_token=self._eos,
            pad_token=self._pad,
            thinking=thinking,
            enable_thinking=thinking,
            **({"tools": [dict(tool) for tool in tools]} if tools else {}),
        )

    def _ids(self, pieces: Iterable[Piece]) -> list[int]:
        return [i for p in pieces for i in ([self._id(p.text)] if p.special else self.encode(p.text))]

    def _id(self, token: str, name: str = "") -> int:
        if token not in self._added:
            raise CheckpointError(f"this tokenizer has no {name or 'special'} token {token!r}")
        return self._added[token]


def _without_added_tokens(description: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(description | {"added_tokens": [], "post_processor": None}))


def _bytes_by_id(backend: tokenizers.Tokenizer) -> dict[int, bytes]:
    table = bpe.byte_of_character()
    added = {token_id: token.content.encode() for token_id, token in backend.get_added_tokens_decoder().items()}
    try:
        vocabulary = {
            token_id: bytes(table[character] for character in token)
            for token, token_id in backend.get_vocab(with_added_tokens=False).items()
            if token_id not in added
        }
    except KeyError as error:
        raise CheckpointError(f"the vocabulary is not byte-level: a token holds {error.args[0]!r}") from error
    return vocabulary | added
