"""docs/how-to/add-a-family.md holds: its page and its one line are all that a new family takes."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sobre.errors import CheckpointError
from sobre.models import checkpoint
from sobre.models.families import table
from sobre.models.step import StepInput

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "add-a-family.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
TABLE = Path(table.__file__).read_text(encoding="utf-8")


def module(name: str, source: str) -> ModuleType:
    found = ModuleType(name)
    exec(compile(source, name, "exec"), found.__dict__)
    return found


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page beside the others, its line at the end of the table's list, and nothing else."""
    line = BLOCKS[""]
    assert line == '    "mistral",\n'
    name = "sobre.models.families.mistral"
    monkeypatch.setitem(sys.modules, name, module(name, BLOCKS["python"]))
    longer = TABLE.replace('    "seed",\n', '    "seed",\n' + line)
    assert longer.count("\n") == TABLE.count("\n") + 1
    grown = module("table", longer)
    monkeypatch.setattr(checkpoint, "FAMILIES", grown.FAMILIES)
    monkeypatch.setattr(checkpoint, "family_of", grown.family_of)


@pytest.fixture
def theirs(tmp_path: Path) -> "transformers.MistralForCausalLM":
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MistralConfig(
        vocab_size=61,
        **sizes,
        head_dim=12,
        intermediate_size=40,
        max_position_embeddings=64,
        sliding_window=None,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    return model


def test_a_family_is_one_page_and_one_line(added: None, theirs, tmp_path: Path) -> None:
    ours = checkpoint.load_model(tmp_path / "theirs")
    tokens_BT = torch.randint(0, 61, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine = ours.logits(ours(StepInput(tokens_BT[0], lengths=(40,))).hidden_ND)
        assert (mine - theirs(tokens_BT).logits[0]).abs().max() < 1e-4
        assert mine.std() > 0.1
        checkpoint.save_model(ours, tmp_path / "back")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
        assert type(again) is transformers.MistralForCausalLM
        assert torch.equal(again(tokens_BT).logits, theirs(tokens_BT).logits)


def test_without_them_the_model_is_refused_and_with_them_its_window_is(theirs, tmp_path: Path, request) -> None:
    with pytest.raises(CheckpointError, match="model_type 'mistral' is unknown"):
        checkpoint.load_model(tmp_path / "theirs")
    request.getfixturevalue("added")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(path.read_text().replace('"sliding_window": null', '"sliding_window": 16'))
    with pytest.raises(CheckpointError, match="mistral with sliding_window=16 is not supported"):
        checkpoint.load_model(tmp_path / "theirs")
