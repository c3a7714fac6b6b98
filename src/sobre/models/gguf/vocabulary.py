"""A tokenizer as llama.cpp keeps it: tokens and merges as they are, and the name of its pre-tokenizer.

llama.cpp does not read the expression that cuts text into words; it knows a list of them by name. One that it does not
know would give other tokens than the model was trained on, so it is refused. Ids without a token, which models have
where their vocabulary is padded, become unused tokens.

No normaliser runs there. Ours has none; Qwen2's brings text into NFC first, so decomposed text differs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sobre.errors import CheckpointError
from sobre.models.gguf.file import Value
from sobre.tokenizer import folder
from sobre.tokenizer.bpe import QWEN2

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens: text makes normal and user-defined ones, never control ones."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PRE_TOKENIZERS = {
    (QWEN2,): "qwen2",
    (QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"),): "llama-bpe",
    _DEEPSEEK_V3: "deepseek-v3",
    (_GPT2,): "gpt-2",
}
"""Expressions, in the order in which they cut, to llama.cpp's name for them."""


def vocabulary_fields(path: Path, vocab_size: int) -> dict[str, Value]:
    """The fields of a model folder's tokenizer, for a model of `vocab_size` ids."""
    backend, template, bos, eos, pad = folder.read(path)
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise CheckpointError(f"{path}: llama.cpp takes byte-level BPE from us; the tokenizer is {model['type']}")
    tokens, kinds = _tokens(path, backend.get_vocab(with_added_tokens=True), described, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    fields: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(path, described),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges or [" "],
    }
    for name, token in (("bos", bos), ("eos", eos), ("padding", pad)):
        if token and (found := backend.token_to_id(token)) is not None:
            fields[f"tokenizer.ggml.{name}_token_id"] = found
    fields["tokenizer.ggml.add_bos_token"] = bool(bos) and backend.encode("").tokens[:1] == [bos]
    if template:
        fields["tokenizer.chat_template"] = template
    return fields


def _tokens(path: Path, ids: dict[str, int], described: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    if max(ids.values()) >= vocab_size:
        raise CheckpointError(f"{path}: the tokenizer has ids up to {max(ids.values()):,}, the model {vocab_size:,}")
    added = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in described["added_tokens"]}
    names = {token_id: token for token, token_id in ids.items()}
    if len(names) != len(ids):
        raise CheckpointError(f"{path}: two tokens share an id, which a GGUF file cannot say")
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    return tokens, [added.get(i, NORMAL if i in names else UNUSED) for i in range(vocab_size)]


def _pre_tokenizer(path: Path, described: dict[str, Any]) -> str:
    expressions = tuple(_expressions(described["pre_tokenizer"] or {}))
    name = PRE_TOKENIZERS.get(expressions)
    normalizer = described["normalizer"]
    if name is None or normalizer not in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        known = ", ".join(PRE_TOKENIZERS.values())
        raise CheckpointError(
            f"{path}: the tokenizer cuts words by {' then '.join(map(repr, expressions)) or 'nothing'}"
            f" (normaliser {normalizer}), which we have no name for that llama.cpp knows; known: {known}"
        )
    return name


def _expressions(part: dict[str, Any]) -> Iterator[str]:
    """The expressions of a pre-tokenizer in tokenizer.json, in order."""
    for inner in part.get("pretokenizers", ()):
        yield from _expressions(inner)
    if part.get("type") == "Split":
        yield part["pattern"].get("Regex", "")
    elif part.get("type") == "ByteLevel" and part.get("use_regex", True):
        yield _GPT2
    elif part.get("type") not in ("Split", "ByteLevel", "Sequence", None):
        yield str(part["type"])
