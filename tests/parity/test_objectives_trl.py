"""Loss and gradient of each objective equal those of TRL's trainers on the same log-probabilities.

TRL's own `_compute_loss` runs on a stand-in for the trainer that hands it the numbers; so its formulas are the oracle,
and no model, no data and no generation take part. Needs the extra `peers`.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from sobre.rl.config import (
    Algorithm,
    CISPOConfig,
    DAPOConfig,
    DeepSeekV32Config,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    PublishedConfig,
    RLOOConfig,
)
from sobre.rl.objectives import Streams, objective

pytestmark = [
    pytest.mark.slow,  # importing TRL takes longer than all of its losses
    pytest.mark.filterwarnings("ignore"),
]

LENGTHS = torch.tensor([7, 3, 5, 1])
LIMIT = 9

CASES: dict[str, tuple[Algorithm, dict[str, Any]]] = {
    "grpo": (
        GRPOConfig(kl=0.05),
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.05, "use_bias_correction_kl": True},
    ),
    "grpo_published": (PublishedConfig(kl=0.04), {"loss_type": "grpo", "beta": 0.04}),
    "dr_grpo": (DrGRPOConfig(), {"loss_type": "dr_grpo"}),
    "dr_grpo with kl": (DrGRPOConfig(kl=0.1), {"loss_type": "dr_grpo", "beta": 0.1}),
    "dapo": (DAPOConfig(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        GSPOConfig(clip_low=0.05, clip_high=0.08),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    ),
    "cispo": (CISPOConfig(max_ratio=1.3), {"loss_type": "cispo", "epsilon_high": 1.3}),
    "deepseek_v32": (
        DeepSeekV32Config(kl=0.05, max_drift=0.1),
        {"loss_type": "grpo", "beta": 0.05, "use_bias_correction_kl": True, "off_policy_mask_threshold": 0.1},
    ),
}


def numbers(seed: int) -> dict[str, torch.Tensor]:
    """Log-probabilities of 4 answers (BT, padded), advantages (B)."""
    draw = torch.Generator().manual_seed(seed)
    logp_BT = -torch.rand(4, 7, generator=draw).double() * 3
    behaviour_BT = logp_BT + 0.5 * torch.randn(4, 7, generator=draw)
    return {
        "logp": logp_BT,
        "behaviour": behaviour_BT,
        "old": behaviour_BT + 0.2 * torch.randn(4, 7, generator=draw),
        "reference": logp_BT + 0.5 * torch.randn(4, 7, generator=draw),
        "advantage": torch.tensor([1.2, -0.4, 0.3, -0.9]).double(),
        "mask": (torch.arange(7) < LENGTHS[:, None]).double(),
    }


def theirs(x: dict[str, torch.Tensor], *, cap: float = 0.0, **options: Any) -> tuple[float, torch.Tensor]:
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="pip install -e '.[peers]'")
    logp_BT = x["logp"].clone().requires_grad_()
    settings = {"loss_type": "grpo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2}
    settings |= {"beta": 0.0, "off_policy_mask_threshold": None, **options}
    bias_correction = settings.pop("use_bias_correction_kl", False)
    stand_in = SimpleNamespace(
        **settings,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=bias_correction, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BT, torch.zeros_like(logp_BT), None),
        get_off_policy_mask=trainer.GRPOTrainer.get_off_policy_mask,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda v: v, reduce=lambda v, **_: v, sync_gradients=True),
        model=torch.nn.Identity(),
        current_gradient_accumulation_steps=1,
        max_completion_length=LIMIT,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        use_vllm=cap > 0,
        vllm_importance_sampling_correction=cap > 0,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros(4, 7, dtype=torch.long),
        "completion_mask": x["mask"],
        "advantages": x["advantage"],
        "old_per_token_logps": x["old"] if cap else x["behaviour"],
        "sampling_per_token_logps": x["behaviour"],
        "ref_per_token_logps": x["reference"],
        "num_items_in_batch": x["mask"].sum(),
        "importance_sampling_ratio": (x["old"] - x["behaviour"]).exp().clamp(max=cap or None) if cap else None,
    }
    loss = trainer.GRPOTrainer._compute_loss(stand_in, None, inputs)
    loss.backward()
    assert logp_BT.grad is not None
    return float(loss.detach()), logp_BT.grad


def ours(x: dict[str, torch.Tensor], cfg: Algorithm, *, cap: float = 0.0) -> tuple[float, torch.Tensor]:
    trained = x["mask"] > 0
    per_token = torch.repeat_interleave(LENGTHS, LENGTHS).double()
    weights_N = 1 / per_token if cfg.mean_over == "answers" else torch.ones_like(per_token)
    scale = float(LENGTHS.sum()) / (len(LENGTHS) * LIMIT) if cfg.mean_over == "limit" else 1.0
    logp_BT = x["logp"].clone().requires_grad_()
    streams = Streams(
        behaviour_N=x["behaviour"][trained],
        advantage_N=x["advantage"][:, None].expand(4, 7)[trained],
        weights_N=weights_N,
        reference_N=x["reference"][trained],
        answer_N=torch.repeat_interleave(torch.arange(4), LENGTHS),
        scale_N=torch.full_like(per_token, scale),
        old_N=x["old"][trained],
    )
    loss = objective(logp_BT[trained], streams, cfg, max_correction=cap).sum / weights_N.sum()
    loss.backward()
    assert logp_BT.grad is not None
    return float(loss.detach()), logp_BT.grad


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(name: str, seed: int) -> None:
    cfg, options = CASES[name]
    x = numbers(seed)
    expected, gradient = theirs(x, **options)
    found, own = ours(x, cfg)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert_close(own, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_truncated_importance_sampling_is_trls(seed: int) -> None:
    x = numbers(seed)
    expected, gradient = theirs(x, cap=1.1, loss_type="dapo", epsilon_high=0.28)
    found, own = ours(x, DAPOConfig(), cap=1.1)
    assert found == pytest.approx(expected, rel=1e-12)
    assert_close(own, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rloo_is_trls(seed: int) -> None:
    trainer = pytest.importorskip("trl.trainer.rloo_trainer", reason="pip install -e '.[peers]'")
    x = numbers(seed)
    logp_BT = x["logp"].clone().requires_grad_()
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BT, torch.zeros_like(logp_BT), None),
        accelerator=SimpleNamespace(gather=lambda v: v, reduce=lambda v, **_: v),
        model=torch.nn.Identity(),
        epsilon_low=0.2,
        epsilon_high=0.2,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros(4, 7, dtype=torch.long),
        "completion_mask": x["mask"],
        "advantages": x["advantage"],
        "old_logps": (x["behaviour"] * x["mask"]).sum(1),
    }
    loss = trainer.RLOOTrainer._compute_loss(stand_in, None, inputs)
    loss.backward()
    found, own = ours(x, RLOOConfig())
    assert found == pytest.approx(float(loss.detach()), rel=1e-12)
    assert_close(own, logp_BT.grad, rtol=1e-10, atol=1e-12)
