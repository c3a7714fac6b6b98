"""Files and folders to documents and chats. Every record is either handed on or reported, by file and line.

    .txt .md           one document a file; a long one is cut at paragraph ends
    .jsonl .parquet    one a row: {"text", optional "source", "lang"}, or {"messages", ...} for chats

Each also as .gz or .zst. Folders are read recursively in the order of their paths.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.records import is_good_text, labels_of, messages_of, text_of
from sobre.data.rows import decode, jsonl_rows, parquet_rows, report_broken, report_empty
from sobre.data.streams import BrokenStream, TooLong, read_all
from sobre.errors import DataError
from sobre.tokenizer.chat import Message, layout

TEXT_KINDS, ROW_KINDS, PACKED = (".txt", ".md"), (".jsonl", ".parquet"), (".gz", ".zst")
KINDS = ".txt .md .jsonl .parquet, each also as .gz or .zst"


@dataclass(frozen=True)
class Document:
    """A text and where it is from."""

    text: str
    source: str = ""
    lang: str = ""
    where: str = ""
    """File and line, for messages."""
    messages: Sequence[Message] = ()
    """A chat to be read as pretraining text, in the chat layout; `text` is then what its messages say."""


@dataclass(frozen=True)
class Chat:
    """Messages and where they are from."""

    messages: Sequence[Message]
    source: str = ""
    lang: str = ""
    where: str = ""


def read_documents(paths: Iterable[str | Path], cfg: DataConfig, events: Events | None = None) -> Iterator[Document]:
    """The documents of `paths`, one after the other, never more than a few in memory."""
    events = events or Events(cfg.on_bad_record)
    for path in find_files(paths, events):
        if kind(path) in TEXT_KINDS:
            yield from _text_file(path, cfg, events)
            continue
        for where, row in _rows(path, cfg, events):
            text = text_of(row, where, cfg, events)
            labels = None if text is None else labels_of(row, _stem(path), where, cfg, events)
            if text is not None and labels is not None:
                yield Document(text, *labels, where)


def read_chats(paths: Iterable[str | Path], cfg: DataConfig, events: Events | None = None) -> Iterator[Chat]:
    """The chats of `paths`."""
    events = events or Events(cfg.on_bad_record)
    for path in find_files(paths, events):
        if kind(path) in TEXT_KINDS:
            fits = f".jsonl or .parquet rows with {cfg.messages_field!r}"
            events.reject("wrong fields", str(path), "a plain text file holds no chats", fits)
            continue
        for where, row in _rows(path, cfg, events):
            messages = messages_of(row, where, cfg, events)
            labels = None if messages is None else labels_of(row, _stem(path), where, cfg, events)
            if messages is not None and labels is not None:
                yield Chat(messages, *labels, where)


def read_texts(paths: Iterable[str | Path], cfg: DataConfig, events: Events | None = None) -> Iterator[str]:
    """All that `paths` say, documents and chats alike and no file cut: to look for something in it."""
    events = events or Events(cfg.on_bad_record)
    for path in find_files(paths, events):
        if kind(path) in TEXT_KINDS:
            text = _read_text(path, cfg, events)
            if text is not None and is_good_text(text, str(path), cfg, events):
                yield text
            continue
        for where, row in _rows(path, cfg, events):
            has_chat = row.get(cfg.messages_field) is not None
            messages = messages_of(row, where, cfg, events) if has_chat else None
            if messages is not None:
                yield "\n".join(piece.text for piece in layout(messages))
            if not has_chat or row.get(cfg.text_field) is not None:
                text = text_of(row, where, cfg, events)
                if text is not None:
                    yield text


def find_files(paths: Iterable[str | Path], events: Events) -> list[Path]:
    """The files to read, each once. A path that does not exist or fits nothing is refused whatever the recipe says."""
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"data path {path} does not exist")
        found = sorted(inner for inner in path.rglob("*") if not inner.is_dir()) if path.is_dir() else [path]
        usable = [file for file in found if kind(file)]
        if not usable:
            raise DataError(f"data path {path} holds no file of a kind that can be read: {KINDS}")
        for file in found:
            if not kind(file) or (file.exists() and not file.is_file()):
                events.note("file of another kind not read", str(file))
            elif file in files:
                events.note("file given twice, read once", str(file))
            else:
                files[file] = None
    return list(files)


def jsonl_alone(
    paths: Iterable[str | Path], cfg: DataConfig, events: Events, *, what: str, fits: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row of the files lies, and the row, for what has no other kind of file; others are bad records."""
    for path in find_files(paths, events):
        if kind(path) == ".jsonl":
            yield from jsonl_rows(path, cfg, events)
        else:
            events.reject("wrong fields", str(path), f"{what} are read from .jsonl files alone", fits)


def kind(path: Path) -> str:
    """ ".txt", ".md", ".jsonl" or ".parquet", whether packed or not; "" for anything else."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT_KINDS + ROW_KINDS else ""


def _rows(path: Path, cfg: DataConfig, events: Events) -> Iterator[tuple[str, dict[str, Any]]]:
    return (jsonl_rows if kind(path) == ".jsonl" else parquet_rows)(path, cfg, events)


def _text_file(path: Path, cfg: DataConfig, events: Events) -> Iterator[Document]:
    text = _read_text(path, cfg, events)
    if text is None or not is_good_text(text, str(path), cfg, events):
        return
    line = 1
    for part in cut_at_paragraphs(text, cfg.document_chars):
        yield Document(part, _stem(path), "", f"{path}:{line}")
        line += part.count("\n")


def _read_text(path: Path, cfg: DataConfig, events: Events) -> str | None:
    try:
        data = read_all(path, cfg.max_record_bytes)
    except BrokenStream as error:
        report_broken(path, "before its end", error, events)
        return None
    except TooLong:
        reason = f"the file is longer than data.max_record_bytes = {cfg.max_record_bytes:,}"
        events.reject("too long", str(path), reason, "smaller files, or a larger limit")
        return None
    if not data:
        report_empty(path, events)
        return None
    return decode(data, str(path), events)


def cut_at_paragraphs(text: str, size: int) -> Iterator[str]:
    """Cut into parts of at most `size` characters: after a blank line if there is one, else a line end, else anywhere.

    The parts together are the text. A part without a visible character is joined to the next.
    """
    start = end = 0
    visible = len(text.rstrip())
    while visible - end > size:
        window = text[end : end + size]
        end += next((at + len(mark) for mark in ("\n\n", "\n") if (at := window.rfind(mark)) > 0), size)
        if text[start:end].strip():
            yield text[start:end]
            start = end
    yield text[start:]


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
