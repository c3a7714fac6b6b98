"""Sets of the hub: the right file is asked for and read, and every refusal says what to do. The download is a stub."""

from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors

from sobre.app.eval import EvalOptions, _problems
from sobre.data.events import Events
from sobre.data.problems import read_sets
from sobre.errors import ConfigError, DataError
from sobre.tasks.config import TasksConfig
from sobre.tasks.files import KNOWN, find_file, read_problems
from sobre.tasks.hub import ADDRESSES, located

ROWS = [{"question": f"{i} + 1?", "answer": f"One more. #### {i + 1}"} for i in range(60)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A hub with one file; what it was asked for."""
    asked = []
    (tmp_path / "cache").mkdir()
    stored = tmp_path / "cache" / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), stored)

    def download(repo: str, name: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repo, name, repo_type, revision))
        return str(stored)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_well_known_set_that_is_not_here_comes_from_the_hub(hub, tmp_path: Path, capsys) -> None:
    asked, _ = _problems("gsm8k", "", EvalOptions(folder="x", tasks="gsm8k", files=str(tmp_path / "nothing")))
    assert hub == [("openai/gsm8k", "main/test-00000-of-00001.parquet", "dataset", None)]
    assert [(problem.task, problem.prompt, problem.answer) for problem in asked[:2]] == [
        ("gsm8k", "0 + 1?", "1"),
        ("gsm8k", "1 + 1?", "2"),
    ]
    assert "gsm8k/main/test-00000-of-00001.parquet: from the hub, or its cache" in capsys.readouterr().err


def test_a_file_that_is_here_is_taken_and_the_hub_is_not_asked(hub, tmp_path: Path) -> None:
    (tmp_path / "math500.jsonl").write_text('{"prompt": "x", "answer": 1}\n')
    assert find_file("math500", tmp_path) == tmp_path / "math500.jsonl"
    assert not hub


def test_a_set_of_ones_own_is_named_by_its_address(hub) -> None:
    options = EvalOptions(folder="x", tasks="mine=hf://me/sums@v2/parts/one.parquet")
    asked, _ = _problems("mine", "hf://me/sums@v2/parts/one.parquet", options)
    assert (asked[0].task, len(asked)) == ("mine", 60)
    cfg = TasksConfig(names=(), files=("mine=hf://datasets/me/sums/one.parquet",))
    learned = read_sets(cfg, Events())[0]
    assert (learned.name, learned.path) == ("mine", "hf://datasets/me/sums/one.parquet")
    assert len(learned.train) + len(learned.val) + len(learned.test) + learned.overlapping == 60
    assert hub == [("me/sums", "parts/one.parquet", "dataset", "v2"), ("me/sums", "one.parquet", "dataset", None)]


@pytest.mark.parametrize("address", ["hf://gsm8k", "hf://openai/gsm8k", "hf://openai/gsm8k/", "hf://a b/c/d.jsonl"])
def test_an_address_that_is_none_says_what_would_be_one(address: str, hub) -> None:
    with pytest.raises(ConfigError, match="no address of a file; it would be hf://OWNER/SET/FILE"):
        located(address)
    assert not hub


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "LocalEntryNotFoundError",
            "not in the hub's cache, .* cannot be reached.*hf download openai/gsm8k main",
        ),
        ("GatedRepoError", "accept its terms at https://huggingface.co/datasets/openai/gsm8k, then set HF_TOKEN"),
        ("RepositoryNotFoundError", "the hub has no dataset openai/gsm8k; a private one needs HF_TOKEN"),
        ("RevisionNotFoundError", "openai/gsm8k has no revision None"),
        ("EntryNotFoundError", "the dataset openai/gsm8k has no file main/test-00000"),
        ("OfflineModeIsEnabled", "the hub gave no such file"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(name: str, said: str, monkeypatch, tmp_path: Path) -> None:
    def refuse(*_, **__):
        kind = getattr(errors, name)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DataError, match=f"(?s)^hf://openai/gsm8k/main.*{said}"):
        find_file("gsm8k", tmp_path)


def test_the_addresses_are_of_known_sets_and_of_files_that_are_read(hub) -> None:
    assert KNOWN.keys() - ADDRESSES.keys() == {"mgsm"}
    for name, address in ADDRESSES.items():
        located(address)
        repo, file, *_ = hub[-1]
        assert f"hf://{repo}/{file}" == address, name
        assert file.endswith((".parquet", ".jsonl"))


def test_rows_as_the_hub_lays_them_out_are_read(tmp_path: Path) -> None:
    arc = [
        {"question": f"Which? {key}", "choices": {"text": ["a", "b", "c"], "label": labels}, "answerKey": key}
        for key, labels in (("C", ["A", "B", "C"]), ("2", ["1", "2", "3"]))
    ]
    mmlu = [{"question": "Which?", "subject": "s", "choices": ["a", "b"], "answer": 1}] * 3
    found = []
    for name, rows in (("arc", arc), ("mmlu", mmlu)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        found.append(read_problems(tmp_path / f"{name}.parquet", name))
    assert [problem.answer for problem in found[0]] == ["C", "B"]
    first = found[1][0].key
    assert [problem.key for problem in found[1]] == [first, f"{first}#2", f"{first}#3"]  # one question, asked thrice
