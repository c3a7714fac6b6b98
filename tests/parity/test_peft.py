"""Our adapters in `peft` over `transformers`: equal logits, for every family and part."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sobre.models.adapt import adapt, adapters
from sobre.models.checkpoint import load_adapted, load_model, save_adapter, save_model
from sobre.models.config import LoraConfig
from sobre.models.decoder import Decoder

from .test_families import SHAPES, filled, our_logits

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*_pattern keys did not match:RuntimeWarning"
    ),  # peft's own, of a pattern it made
]
FAMILIES = list({shape.split()[0]: shape for shape in reversed(SHAPES)}.values())
"""The first shape of every family."""
PARTS = ("attention", "dense", "experts")
CASES = [(shape, PARTS, False) for shape in FAMILIES] + [
    ("deepseek_v3", ("dense",), True),
    ("deepseek_v3", ("experts",), True),
    ("qwen3_moe", ("attention", "experts"), True),
    ("llama", ("attention",), True),
]


def adapted(shape: str, parts, stabilised: bool) -> Decoder:
    model = filled(SHAPES[shape])
    model.family = shape.split()[0]
    lora = LoraConfig(rank=4, alpha=6, rank_stabilised=stabilised, parts=parts)
    adapt(model, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in adapters(model).values():
            list(one.parameters())[1].normal_(0.0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize(("shape", "parts", "stabilised"), CASES)
@pytest.mark.slow
def test_our_adapter_loads_there_with_equal_logits(shape, parts, stabilised, tmp_path: Path):
    tokens_BT = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(1))
    model = adapted(shape, parts, stabilised)
    base = filled(SHAPES[shape])
    base.family = model.family
    save_model(base, tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    ours_BTV = our_logits(model, tokens_BT)
    assert (ours_BTV - our_logits(base, tokens_BT)).abs().max() > 0.1  # the adapters matter

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs_BTV = theirs(tokens_BT).logits
    assert_close(ours_BTV, theirs_BTV, rtol=0, atol=1e-4)


def test_an_adapter_that_peft_made_comes_in(tmp_path: Path):
    """Two projections of attention only, as most adapters have."""
    tokens_BT = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(1))
    base = filled(SHAPES["llama"])
    save_model(base, tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
        theirs_BTV = theirs(tokens_BT).logits
    theirs.save_pretrained(tmp_path / "adapter")
    assert_close(our_logits(load_adapted(tmp_path / "adapter"), tokens_BT), theirs_BTV, rtol=0, atol=1e-4)
    assert_close(our_logits(load_model(tmp_path / "adapter"), tokens_BT), theirs_BTV, rtol=0, atol=1e-4)
