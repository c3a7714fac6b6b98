"""The tokenizer's files in a model folder, as `transformers` names them."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from sobre.errors import CheckpointError

MAX_VOCABULARY_BYTES = 256 * 2**20
"""Of tokenizer.json: eight times the largest that we know; reading one takes many times its size."""
VOCABULARY, SETTINGS, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


def write(path: Path, backend: tokenizers.Tokenizer, chat_template: str, names: dict[str, str], max_len: int) -> None:
    """Write the three files."""
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: token for name, token in names.items() if token},
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    if max_len:
        settings["model_max_length"] = max_len
    path.mkdir(parents=True, exist_ok=True)
    (path / VOCABULARY).write_text(backend.to_str(pretty=True), encoding="utf-8")
    (path / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if chat_template:
        (path / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")


def read(path: Path) -> tuple[tokenizers.Tokenizer, str, str, str, str]:
    """Read vocabulary, chat template ("" if none), and the spellings of bos, eos and pad ("" if none)."""
    if not (path / VOCABULARY).is_file():
        raise CheckpointError(f"{path} holds no {VOCABULARY}; a model folder in the Hugging Face layout has one")
    size = (path / VOCABULARY).stat().st_size
    if size > MAX_VOCABULARY_BYTES:
        raise CheckpointError(f"{path / VOCABULARY} has {size:,} bytes; at most {MAX_VOCABULARY_BYTES:,} are read")
    try:
        backend = tokenizers.Tokenizer.from_str((path / VOCABULARY).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path / VOCABULARY} cannot be read: {error}") from error
    settings = _read_settings(path / SETTINGS)
    bos, eos, pad = (_spelling(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token"))
    return backend, _read_template(path, settings), bos, eos, pad


def model_type(path: Path) -> str:
    """What the config.json beside the vocabulary says that the model is; "" where there is none."""
    return str(_read_settings(path / "config.json").get("model_type") or "")


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a {type(settings).__name__}; it must be a JSON object")
    return settings


def _read_template(path: Path, settings: dict[str, Any]) -> str:
    """The template file, else the one in the settings (older folders; of several, the one named default)."""
    if (path / CHAT_TEMPLATE).is_file():
        return (path / CHAT_TEMPLATE).read_text(encoding="utf-8")
    template = settings.get("chat_template") or ""
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default") or ""
    return template


def _spelling(token: Any) -> str:
    """A token is written as a string or as an object with `content`."""
    return (token.get("content") if isinstance(token, dict) else token) or ""
