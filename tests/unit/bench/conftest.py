"""What several benchmarks begin with."""

from dataclasses import replace
from pathlib import Path

import pytest

from sobre.models.checkpoint import save_model
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.tasks.config import TasksConfig
from sobre.tasks.sampling import chat
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def start(tmp_path: Path, nano_config: ModelConfig) -> Path:
    """A folder to start from: an untrained model with a tokenizer that knows arithmetic."""
    tasks = TasksConfig(names=("arithmetic",), langs=("en",))
    texts = [message["content"] for i in range(50) for message in chat(tasks, "t", i)]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(vocab_size=300))
    model = Decoder(replace(nano_config, vocab_size=tokenizer.vocab_size, max_len=96))
    model.init_weights(0)
    save_model(model, tmp_path / "start", extra=tokenizer.end_ids())
    tokenizer.save(tmp_path / "start", max_len=96)
    return tmp_path / "start"
