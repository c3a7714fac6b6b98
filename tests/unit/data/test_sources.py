"""Good files are read exactly; every malformed record is refused or counted, by file and line."""

import gzip
import json
import os

import pytest

from sobre.data.config import DataConfig
from sobre.data.events import N_NAMED, Events
from sobre.data.sources import Document, cut_at_paragraphs, read_chats, read_documents, read_texts
from sobre.errors import ConfigError, DataError

COUNT = DataConfig(on_bad_record="count")
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def jsonl(*rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def read(path, cfg=COUNT):
    events = Events(cfg.on_bad_record)
    return list(read_documents([path], cfg, events)), events


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_kind_of_file_gives_its_documents(write, make_parquet, packed):
    rows = [{"text": f"text {i}\u2028é", "source": "s", "lang": "fr"} for i in range(8)]
    table = make_parquet({key: [row[key] for row in rows] for key in rows[0]} | {"other": list(range(8))})
    for name, data in (("a.jsonl", jsonl(*rows)), ("b.parquet", table)):
        path = write(name + packed, data)
        documents, events = read(path)
        place = ":" if name == "a.jsonl" else ":row "
        expected = [Document(row["text"], "s", "fr", f"{path}{place}{i}") for i, row in enumerate(rows, 1)]
        assert documents == expected
        assert events.n_bad == 0
    for name in ("c.txt", "d.MD"):
        path = write(name + packed, "one\r\ntwo\u2028three\n".encode())
        assert read(path)[0] == [Document("one\r\ntwo\u2028three\n", name[0], "", f"{path}:1")]


def test_a_folder_is_read_in_order_and_other_files_are_counted(write, tmp_path):
    write("b/x.txt", b"second")
    write("a.txt", b"first")
    write("z.pdf", b"not text")
    events = Events()
    found = list(read_documents([tmp_path, tmp_path / "a.txt"], DataConfig(), events))
    assert [document.text for document in found] == ["first", "second"]
    assert events.to_json()["notes"] == {
        "file given twice, read once": {"count": 1, "first": [str(tmp_path / "a.txt")]},
        "file of another kind not read": {"count": 1, "first": [str(tmp_path / "z.pdf")]},
    }


def test_a_row_without_a_source_is_named_after_its_file(write):
    assert read(write("corpus.v2.jsonl.gz", jsonl({"text": "x", "source": None})))[0][0].source == "corpus"


def test_texts_are_documents_and_chats_alike_and_no_file_is_cut(write, make_parquet):
    rows = write("rows.jsonl.gz", b"".join(json.dumps(row).encode() + b"\n" for row in ({"text": "\u00e9"}, CHAT)))
    both = write("both.jsonl", jsonl(CHAT | {"text": "beside it"}))
    table = write("t.parquet", make_parquet({"text": ["x", None], "messages": [None, CHAT["messages"]]}))
    long = write("long.txt", ("word " * 9_000 + "\n\nand its end").encode())
    texts = list(read_texts([rows, both, table, long], DataConfig()))
    assert [texts[i] for i in (0, 3, 4)] == ["\u00e9", "beside it", "x"]
    assert [[line for line in texts[i].split("\n") if line in ("q", "a")] for i in (1, 2, 5)] == [["q", "a"]] * 3
    assert texts[6].endswith("word \n\nand its end")
    assert len(texts) == 7
    with pytest.raises(DataError, match=r"bad.jsonl:2: the field 'text' is missing"):
        list(read_texts([write("bad.jsonl", jsonl({"text": "x"}, {"prompt": "y"}))], DataConfig()))


BAD_LINES = {
    "invalid UTF-8": b'{"text": "caf\xe9"}',
    "invalid JSON": b'{"text": "never closed',
    "wrong fields": b'["text"]',
    "empty text": b'{"text": " \\n"}',
    "NUL": b'{"text": "a\\u0000b"}',
    "lone surrogate": b'{"text": "a\\ud83db"}',
    "too long": b'{"text": "' + b"x" * 300 + b'"}',
}
MORE_BAD_LINES = [
    ("invalid JSON", b'{"text": "a", "text": "b"}'),
    ("invalid JSON", b'{"text": "raw \x01 control"}'),
    ("invalid JSON", b"[" * 100_000),
    ("invalid JSON", b'{"text": ' + b"9" * 5000 + b"}"),
    ("invalid UTF-8", b'{"text": "\xed\xa0\x80"}'),
    ("wrong fields", b'{"text": 3}'),
    ("wrong fields", b'{"text": null}'),
    ("wrong fields", b'{"content": "x"}'),
    ("wrong fields", b'{"messages": []}'),
    ("wrong fields", b'{"text": "x", "source": 3}'),
    ("lone surrogate", b'{"text": "x", "source": "\\udc00"}'),
    ("wrong fields", b"null"),
]


@pytest.mark.parametrize(("kind", "line"), [*BAD_LINES.items(), *MORE_BAD_LINES])
def test_a_bad_line_is_refused_or_counted_by_file_and_line(write, kind, line):
    limit = 200 if kind == "too long" else 2**20
    path = write("a.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}')
    documents, events = read(path, DataConfig(on_bad_record="count", max_record_bytes=limit))
    assert [document.text for document in documents] == ["before", "after"]
    assert [(name, event.count) for name, event in events.bad.items()] == [(kind, 1)]
    assert f"{path}:2: " in events.bad[kind].first[0]
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*; what fits: .*on_bad_record"):
        read(path, DataConfig(max_record_bytes=limit))


@pytest.mark.parametrize("kind", sorted(set(BAD_LINES) - {"wrong fields", "invalid JSON"}))
def test_a_bad_text_file_is_refused_or_counted(write, kind):
    data = {
        "invalid UTF-8": b"caf\xe9",
        "empty text": b" \n ",
        "NUL": b"a\0b",
        "lone surrogate": b"a\xed\xa0\x80b",
        "too long": b"x" * 300,
    }[kind]
    path = write("a.txt", data)
    documents, events = read(path, DataConfig(on_bad_record="count", max_record_bytes=200))
    assert documents == []
    assert list(events.bad) == ["invalid UTF-8" if kind == "lone surrogate" else kind]
    with pytest.raises(DataError, match=r"a\.txt: .*what fits"):
        read(path, DataConfig(max_record_bytes=200))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_an_empty_file_is_counted(write, make_parquet, name):
    path = write(name, make_parquet({"text": []}) if "parquet" in name else b"")
    documents, events = read(path)
    assert documents == []
    assert list(events.bad) == ["empty file"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_a_file_that_may_not_be_read_is_named_with_the_reason(write, monkeypatch, name):
    path = write(name, b"x")

    def refused(self, *mode):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refused)
    monkeypatch.setattr("sobre.data.rows.pq.ParquetFile", lambda source: refused(source))
    _, events = read(path)
    assert events.bad["broken file"].first[0].startswith(f"{path}: cannot be read")
    with pytest.raises(DataError, match=r"a\..*: cannot be read .*: Permission denied"):
        read(path, DataConfig())


def test_a_link_to_nothing_and_a_pipe_in_a_folder_are_not_passed_over_in_silence(write, tmp_path):
    write("x/a.txt", b"text")
    (tmp_path / "x" / "b.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "x" / "c.txt")
    documents, events = read(tmp_path / "x")
    assert [document.text for document in documents] == ["text"]
    assert events.bad["broken file"].first == [
        f"{tmp_path}/x/b.txt: cannot be read before its end: No such file or directory"
    ]
    assert events.notes["file of another kind not read"].first == [f"{tmp_path}/x/c.txt"]


def test_utf_16_is_named(write):
    _, events = read(write("a.txt", "hello".encode("utf-16")))
    assert "it looks like UTF-16" in events.bad["invalid UTF-8"].first[0]


def test_byte_order_marks_are_taken_off_and_counted(write):
    documents, events = read(write("a.jsonl", b"\xef\xbb\xbf" + jsonl({"text": "\ufeffx"}, {"text": "y"})))
    assert [document.text for document in documents] == ["x", "y"]
    assert events.notes["byte order mark taken off"].count == 2
    assert read(write("a.txt", b"\xef\xbb\xbfx"))[0][0].text == "x"


def test_blank_lines_are_counted_and_change_nothing(write):
    documents, events = read(write("a.jsonl", b'\n{"text": "x"}\r\n \n\n'))
    assert [document.text for document in documents] == ["x"]
    assert events.notes["blank line"].count == 3
    assert events.n_bad == 0


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_a_cut_off_file_keeps_what_came_before_and_says_so(write, name):
    path = write(name, jsonl(*({"text": f"row {i} {i * 7919 % 1000}"} for i in range(500))))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    documents, events = read(path)
    assert events.bad["broken file"].count == 1
    assert str(path) in events.bad["broken file"].first[0]
    assert [document.text for document in documents] == [f"row {i} {i * 7919 % 1000}" for i in range(len(documents))]
    with pytest.raises(DataError, match="damaged or cut off"):
        read(path, DataConfig())


def test_a_file_cut_off_before_its_first_line_is_broken_and_not_empty_too(write):
    path = write("a.jsonl.gz", jsonl({"text": "row"}))
    path.write_bytes(path.read_bytes()[:12])
    assert {kind: event.count for kind, event in read(path)[1].bad.items()} == {"broken file": 1}


def test_gzip_members_and_zstd_frames_are_read_one_after_the_other(write):
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        path = write(name, jsonl({"text": "first"}))
        one = path.read_bytes()
        path.write_bytes(one + one.replace(b"first", b"first") + one)
        assert [document.text for document in read(path)[0]] == ["first"] * 3


def test_a_flipped_byte_in_a_packed_file_is_noticed(write):
    for name in ("a.txt.gz", "a.txt.zst"):
        path = write(name, b"some text that is packed " * 20)
        data = bytearray(path.read_bytes())
        data[-3] ^= 0xFF  # the checksum, or the length, at the end
        path.write_bytes(data)
        assert list(read(path)[1].bad) == ["broken file"]


def test_broken_parquet_files_are_counted(write, make_parquet):
    whole = make_parquet({"text": [f"row {i}" * 50 for i in range(30)]})
    for data in (whole[:-20], whole[:100], b"PAR1", b"not parquet at all", whole[:4] + b"\xff" * 300 + whole[304:]):
        documents, events = read(write("a.parquet", data))
        assert list(events.bad) == ["broken file"]
        assert all(document.text.startswith("row ") for document in documents)


def test_wrong_columns_and_cells_of_a_parquet_file_are_counted(write, make_parquet):
    _, events = read(write("a.parquet", make_parquet({"body": ["x"], "n": [1]})))
    assert "its 1 rows have no field 'text'; the fields: body, n" in events.bad["wrong fields"].first[0]
    path = write("b.parquet", make_parquet({"text": ["good", None, "a\0b", "also good"]}))
    documents, events = read(path)
    assert [document.text for document in documents] == ["good", "also good"]
    assert [event.first[0].split(": ")[0] for event in events.bad.values()] == [f"{path}:row 2", f"{path}:row 3"]


def test_invalid_utf_8_in_a_parquet_cell_is_that_rows_fault_alone(write, make_parquet):
    data = make_parquet({"text": ["first one", "broken Z!", "third one"]}).replace(b"broken Z!", b"broken \xff!")
    documents, events = read(write("a.parquet", data))
    assert [document.text for document in documents] == ["first one", "third one"]
    assert events.bad["invalid UTF-8"].count == 1


def test_only_the_first_few_are_named(write):
    _, events = read(write("a.jsonl", b"{}\n" * 40))
    assert (events.n_bad, len(events.bad["wrong fields"].first)) == (40, N_NAMED)


def test_a_path_that_is_not_there_or_fits_nothing_is_refused_always(write, tmp_path):
    write("x/a.pdf", b"")
    for path, said in ((tmp_path / "none", "does not exist"), (tmp_path / "x", ".txt .md .jsonl .parquet")):
        with pytest.raises(DataError, match=said):
            read(path, COUNT)


def test_chats_are_read_and_bad_ones_counted(write):
    open_thought = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>x"}]}
    question = {"messages": [{"role": "user", "content": "q"}]}
    surrogate = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "NUL \0"}]}
    path = write("a.jsonl", jsonl(CHAT, open_thought, question, {"messages": "x"}, {"text": "x"}, surrogate, CHAT))
    events = Events("count")
    chats = list(read_chats([path], COUNT, events))
    assert [(chat.messages, chat.where) for chat in chats] == [
        (CHAT["messages"], f"{path}:1"),
        (CHAT["messages"], f"{path}:7"),
    ]
    assert {kind: event.count for kind, event in events.bad.items()} == {"wrong chat": 2, "wrong fields": 2, "NUL": 1}
    with pytest.raises(DataError, match="plain text file holds no chats"):
        list(read_chats([write("b.txt", b"x")], DataConfig()))


def test_chats_in_parquet_equal_chats_in_jsonl(write, make_parquet):
    rows = [CHAT, {"messages": [*CHAT["messages"], *CHAT["messages"]]}]
    table = write("a.parquet", make_parquet({"messages": [row["messages"] for row in rows]}))
    lines = write("a.jsonl", jsonl(*rows))
    one, other = (list(read_chats([path], DataConfig())) for path in (table, lines))
    assert [chat.messages for chat in one] == [chat.messages for chat in other]


def test_long_texts_are_cut_at_paragraphs_and_lose_nothing(write):
    paragraphs = [f"paragraph {i}\nwith two lines\n\n" for i in range(100)]
    path = write("a.txt", "".join(paragraphs).encode())
    documents, _ = read(path, DataConfig(document_chars=200))
    assert "".join(document.text for document in documents) == "".join(paragraphs)
    assert all(document.text.endswith("\n\n") and len(document.text) <= 200 for document in documents)
    assert documents[1].where == f"{path}:{documents[0].text.count(chr(10)) + 1}"


@pytest.mark.parametrize(
    "text", ["x" * 50, " " * 50 + "x", "a\n" + "\n" * 40 + "b", "x" + "\n" * 60, "ab\n" * 20, "\n\nab" * 9]
)
def test_every_part_of_a_cut_text_has_something_to_read(text):
    parts = list(cut_at_paragraphs(text, 10))
    assert "".join(parts) == text
    assert all(part.strip() for part in parts)


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"seq_len": 0}, {"holdout_fraction": 1.0}, {"max_record_bytes": 0}):
        with pytest.raises(ConfigError):
            DataConfig(**wrong)


def test_members_of_a_gzip_file_may_be_followed_by_nothing_else(write):
    path = write("a.txt.gz", b"text")
    path.write_bytes(gzip.compress(b"text") + b"rubbish")
    assert list(read(path)[1].bad) == ["broken file"]
