"""What a launch asks of a recipe before anything is spent: stages that can run, and work for every process."""

import numpy as np
import pytest

from sobre.app.layout import check_layout, with_work_for_all
from sobre.app.run import RunOptions
from sobre.config.recipe import Recipe, load_recipe
from sobre.data.loader import PackedLoader
from sobre.errors import ConfigError
from sobre.train.config import FineTuneConfig, PretrainConfig
from sobre.train.share import share
from sobre.train.sources import RowSource


def asked(*argv: str) -> Recipe:
    return load_recipe(list(argv), RunOptions)[0]


class Shards:
    """Text enough for many rows of 4 tokens."""

    n_tokens = 4097

    def read(self, start: int, end: int) -> np.ndarray:
        return np.arange(start, end)


@pytest.mark.parametrize(
    ("flags", "n_processes", "fits"),
    [
        ([], 8, "4 processes, --parallel.context 2 .*, --pretrain.batch_tokens 2048"),
        (["--parallel.context", "2"], 16, "8 processes, --parallel.context 4 "),
        (["--parallel.pipeline", "2"], 16, r"8 processes, --pretrain.batch_tokens 2048 \(larger steps\)$"),
    ],
)
def test_fewer_rows_than_processes_are_refused(flags, n_processes, fits) -> None:
    recipe = asked("demo", *flags)
    with pytest.raises(ConfigError, match="holds 4 rows of data.seq_len=256, and 8 processes .* 4 would") as told:
        check_layout(recipe, n_processes)
    with pytest.raises(ConfigError, match=fits):
        check_layout(recipe, n_processes)
    check_layout(recipe, n_processes // 2)
    assert "pretrain" in str(told.value)


def test_what_the_refusal_says_fits_does() -> None:
    check_layout(asked("demo", "--parallel.context", "2"), 8)
    check_layout(asked("demo", "--pretrain.batch-tokens", "2048"), 8)
    check_layout(asked("demo", "--stages", "sft", "rl"), 8)


@pytest.mark.parametrize("n_processes", [2, 8, 64])
def test_a_micro_batch_of_too_few_rows_is_made_one_row_for_each_process(n_processes: int) -> None:
    said: list[str] = []
    cfg = PretrainConfig(batch_tokens=4 * 2 * n_processes, micro_tokens=4)
    raised = with_work_for_all("pretrain", cfg, 4, n_processes, said.append)
    assert (raised.batch_tokens, raised.micro_tokens) == (cfg.batch_tokens, 4 * n_processes)
    assert f"no sequence for each of {n_processes} processes" in said[0]
    batches = RowSource(PackedLoader(Shards(), 4, seed=1), raised).make()
    assert [[share(batch, i, n_processes).n_tokens for i in range(n_processes)] for batch in batches] == [
        [4] * n_processes
    ] * 2


def test_one_that_is_large_enough_stays_and_chats_ask_for_no_more_than_a_step() -> None:
    said: list[str] = []
    plain = PretrainConfig(batch_tokens=64, micro_tokens=16)
    assert with_work_for_all("pretrain", plain, 8, 2, said.append) is plain
    assert with_work_for_all("pretrain", plain, 64, 1, said.append) is plain
    whole = FineTuneConfig(batch_tokens=64, micro_tokens=64)
    assert with_work_for_all("sft", whole, 40, 8, said.append) is whole
    assert not said
    small = FineTuneConfig(batch_tokens=64, micro_tokens=32)
    for longest, sharers, micro_tokens in ((10, 4, 40), (40, 8, 64)):
        assert with_work_for_all("sft", small, longest, sharers, said.append).micro_tokens == micro_tokens


KL = ["--rl.algorithm.kl", "0.01", "--rl.reference-every", "5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages", "sft", "dpo", "--dpo.paths", "x"], "dpo runs in one process, .* this run has 2"),
        (["--stages", "sft", "dpo", "--dpo.paths", "x", "--parallel.shards", "0"], "dpo runs in one process"),
        (["--rl.stragglers.groups", "2"], "rl.stragglers.groups=2 is for one process, and there are 2"),
        ([*KL, "--parallel.shards", "0"], "rl.reference_every=5 is for models that every process holds whole"),
        (["--stages", "sft", "sft2", "rl2", "--rl2.stragglers.groups", "1"], "rl2.stragglers.groups=1 is for one"),
    ],
)
def test_a_later_stage_that_cannot_run_is_refused_before_the_first(flags: list[str], message: str) -> None:
    recipe = asked("nano", *flags)
    check_layout(recipe, 1)
    with pytest.raises(ConfigError, match=message):
        check_layout(recipe, 2)


def test_a_reference_that_follows_is_for_copies_too() -> None:
    check_layout(asked("nano", *KL), 2)
