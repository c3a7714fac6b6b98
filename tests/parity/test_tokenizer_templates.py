"""Templates of published models render byte for byte as jinja2 alone does (fixtures of ../shared/data/templates).

The templates themselves are read from an installed TRL, or from the folder $SOBRE_TEMPLATES; a template that is in
neither is skipped.
"""

import gzip
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from sobre.errors import DataError
from sobre.tokenizer import template

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared/data/templates/render_golden.jsonl.gz"
NAMES = [
    "trl_deepseekv3",
    "trl_deepseekv3_training",
    "trl_glm4moe",
    "trl_qwen2_5",
    "trl_qwen3",
    "trl_qwen3_instruct_2507",
    "trl_qwen3_training",
    "axolotl_chatml",
    "axolotl_deepseek_v2",
    "axolotl_deepseek_v3",
]


def template_text(name: str) -> str:
    spec = find_spec("trl")
    folders = [Path(os.environ["SOBRE_TEMPLATES"])] if "SOBRE_TEMPLATES" in os.environ else []
    folders += [Path(spec.origin).parent / "chat_templates"] if spec and spec.origin else []
    source, _, short = name.partition("_")
    for folder in folders:
        for file in (folder / f"{name}.jinja", folder / f"{short}.jinja"):
            if file.is_file() and (source == "trl" or file.stem == name):
                return file.read_text(encoding="utf-8")
    pytest.skip(f"the template {name} is not here: install trl, or set SOBRE_TEMPLATES")


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared data is not beside the repository")
@pytest.mark.parametrize("name", NAMES)
def test_a_published_template_renders_byte_for_byte(name):
    text = template_text(name)
    rows = [json.loads(row) for row in gzip.decompress(GOLDEN.read_bytes()).decode().split("\n") if row]
    rows = [row for row in rows if row["template"] == f"{name}.jinja"]
    assert rows
    for row in rows:
        given = {key: row[key] for key in ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")}
        if row["text"] is None:
            with pytest.raises(DataError):
                template.render(text, **given)
        else:
            assert template.render(text, **given) == row["text"]
