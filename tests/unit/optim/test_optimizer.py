"""The optimizer against torch's own, its state, its roles, and what Newton-Schulz promises."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sobre.config.load import to_dict
from sobre.errors import CheckpointError, ConfigError
from sobre.optim.clip import clip_grad_norm
from sobre.optim.config import OptimConfig
from sobre.optim.muon import orthogonalize, update_scale
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import role_of, roles
from sobre.optim.schedule import lr_scale

SHAPES = {
    "embed.weight": (11, 8),
    "layers.0.attn_norm.weight": (8,),
    "layers.0.attn.q.weight": (12, 8),
    "layers.1.attn.q.weight": (12, 8),
    "layers.0.attn.o.weight": (8, 12),
    "layers.1.ffn.router.weight_ED": (4, 8),
    "layers.1.ffn.gate_EFD": (4, 6, 8),
    "layers.1.ffn.down_EDF": (4, 8, 6),
    "head.weight": (11, 8),
}


def make_params(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def give_gradients(params: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def make(params: dict[str, nn.Parameter], **settings) -> Optimizer:
    return Optimizer(params, roles(params), OptimConfig(**settings))


def test_roles_are_read_from_names():
    wanted = {
        "embed.weight": "embedding",
        "head.weight": "head",
        "layers.0.attn_norm.weight": "norm",
        "layers.0.attn.kv_norm.weight": "norm",
        "norm.weight": "norm",
        "mtp.embed_norm.weight": "norm",
        "mtp.proj.weight": "matrix",
        "layers.3.attn.kv_up.weight": "matrix",
        "layers.3.attn.q.bias": "bias",
        "layers.3.ffn.shared.gate.weight": "matrix",
        "layers.3.ffn.router.weight_ED": "router",
        "mtp.block.ffn.up_EFD": "experts",
    }
    assert roles(wanted) == wanted
    with pytest.raises(ConfigError, match=r"table_VD"):
        role_of("memory.table_VD")


def test_adamw_is_torchs_adamw_with_decay_where_the_role_says_so():
    params, twins = make_params(), make_params()
    optimizer = make(params, kind="adamw", lr_adam=0.01, weight_decay=0.1)
    undecayed = {"embed.weight", "layers.0.attn_norm.weight", "layers.1.ffn.router.weight_ED"}
    groups = [
        {"params": [p for name, p in twins.items() if name not in undecayed], "weight_decay": 0.1},
        {"params": [p for name, p in twins.items() if name in undecayed], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for seed in range(3):
        give_gradients(params, seed), give_gradients(twins, seed)
        optimizer.step(1.0)
        oracle.step()
    for name, parameter in params.items():
        assert_close(parameter, twins[name], rtol=1e-5, atol=1e-6)


def test_classic_muon_is_torchs_muon_on_matrices(monkeypatch):
    names = ["layers.0.attn.q.weight", "layers.1.attn.q.weight", "layers.0.attn.o.weight"]
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # torch's Muon rounds; here both stay float32
    params, twins = make_params(), make_params()
    optimizer = make(params, lr=0.02, weight_decay=0.1, ns="classic", ns_steps=5)
    oracle = torch.optim.Muon(
        [twins[name] for name in names], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        give_gradients(params, seed), give_gradients(twins, seed)
        optimizer.step(1.0)
        oracle.step()
    for name in names:
        assert_close(params[name], twins[name], rtol=1e-5, atol=1e-6)


def test_stacked_experts_move_as_separate_matrices():
    stacked = {"layers.1.ffn.gate_EFD": nn.Parameter(torch.randn(4, 6, 8))}
    single = {
        f"layers.{e}.attn.q.weight": nn.Parameter(stacked["layers.1.ffn.gate_EFD"][e].detach().clone())
        for e in range(4)
    }
    give_gradients(stacked, 0)
    for e, parameter in enumerate(single.values()):
        parameter.grad = stacked["layers.1.ffn.gate_EFD"].grad[e].clone()
    make(stacked).step(1.0)
    make(single).step(1.0)
    assert_close(stacked["layers.1.ffn.gate_EFD"].data, torch.stack([p.data for p in single.values()]))


@pytest.mark.parametrize("shape", [(3, 48, 64), (3, 64, 48), (2, 40, 40)])
@pytest.mark.parametrize(
    ("ns", "steps", "low", "high"), [("classic", 5, 0.65, 1.21), ("minimax", 3, 0.67, 1.33), ("minimax", 4, 0.73, 1.27)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_frame(shape, ns, steps, low, high, dtype):
    x_ZIO = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(x_ZIO, full_matrices=False)
    flat_spectrum = torch.linspace(1.0, 0.2, u.shape[-1])
    made = orthogonalize((u * flat_spectrum) @ vh, ns, steps, dtype).float()
    values = torch.linalg.svdvals(made)
    assert low < values.min()
    assert values.max() < high * (1.03 if dtype == torch.bfloat16 else 1.0)
    assert torch.nn.functional.cosine_similarity(made.flatten(), (u @ vh).flatten(), dim=0) > 0.95


@pytest.mark.parametrize("ns", ["classic", "minimax"])
def test_newton_schulz_ignores_the_scale_and_keeps_zero(ns):
    x_ZIO = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    for scale in (1e-25, 1e-13, 1e-6, 1e4, 1e15):
        assert_close(orthogonalize(scale * x_ZIO, ns, 3, torch.float32), orthogonalize(x_ZIO, ns, 3, torch.float32))
    assert orthogonalize(torch.zeros(1, 8, 12), ns, 3, torch.float32).abs().max() == 0


def test_muon_updates_have_the_size_of_adamws():
    made = orthogonalize(
        torch.randn(1, 64, 256, generator=torch.Generator().manual_seed(0)), "minimax", 4, torch.float32
    )
    assert 0.15 < (update_scale(64, 256) * made).square().mean().sqrt() < 0.25


def test_the_learning_rate_scale_scales_the_whole_step():
    still, moved = make_params(), make_params()
    give_gradients(moved, 0)
    make(moved).step(0.0)
    for name in SHAPES:
        assert torch.equal(moved[name], still[name])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_saved_state_continues_bit_for_bit(kind):
    params = make_params()
    optimizer = make(params, kind=kind)
    give_gradients(params, 0)
    optimizer.step(1.0)
    twins = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in reversed(params.items())}
    resumed = make(twins, kind=kind)
    resumed.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
    for each, which in ((params, optimizer), (twins, resumed)):
        generator_order = {name: each[name] for name in SHAPES}
        give_gradients(generator_order, 1)
        which.step(0.5)
    for name in SHAPES:
        assert torch.equal(params[name], twins[name])
    assert {"momentum/layers.1.ffn.gate_EFD", "exp_avg/embed.weight"} & optimizer.state_dict().keys()


def test_loading_the_state_of_a_beginning_forgets_what_was_learned():
    params = make_params()
    optimizer = make(params)
    beginning = {key: value.clone() for key, value in optimizer.state_dict().items()}
    give_gradients(params, 0)
    optimizer.step(1.0)
    optimizer.load_state_dict(beginning)
    assert optimizer.state_dict().keys() == beginning.keys()
    assert all(value.abs().max() == 0 for value in optimizer.state_dict().values())


def test_a_state_of_another_optimizer_is_refused_by_name():
    params = make_params()
    state = make(params).state_dict()
    with pytest.raises(CheckpointError, match="momentum/layers"):
        make(params, kind="adamw").load_state_dict(state)


def test_clipping_scales_the_joint_norm_and_never_hides_a_bad_one():
    grads = [torch.full((3,), 2.0), torch.full((2, 2), 2.0)]
    wanted = torch.cat([grad.flatten() for grad in grads]).norm()
    assert_close(clip_grad_norm(grads, 1.0), wanted)
    assert_close(torch.cat([grad.flatten() for grad in grads]).norm(), torch.tensor(1.0))
    small = [torch.tensor([0.3])]
    clip_grad_norm(small, 1.0)
    assert small[0] == torch.tensor([0.3])
    bad = [torch.tensor([1.0, torch.nan])]
    assert clip_grad_norm(bad, 1.0).isnan()
    endless = [torch.tensor([1.0, torch.inf])]
    assert clip_grad_norm(endless, 1.0).isinf()


def test_the_learning_rate_rises_stays_and_falls():
    cfg = OptimConfig(warmup_steps=4, cooldown=0.5, final=0.1)
    assert [lr_scale(0.0, step, cfg) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_scale(0.5, 100, cfg) == 1.0
    assert lr_scale(0.75, 100, cfg) == pytest.approx(0.55)
    assert lr_scale(1.0, 100, cfg) == pytest.approx(0.1)
    assert lr_scale(1.2, 100, cfg) == pytest.approx(0.1)


def test_the_square_root_cooldown_falls_faster_first():
    linear, root = OptimConfig(cooldown=0.5), OptimConfig(cooldown=0.5, cooldown_shape="sqrt")
    assert lr_scale(0.625, 100, root) == pytest.approx(0.5)
    assert lr_scale(0.625, 100, root) < lr_scale(0.625, 100, linear)
    assert lr_scale(1.0, 100, root) == 0.0


def test_no_cooldown_stays_flat():
    assert lr_scale(1.0, 100, OptimConfig(cooldown=0.0)) == 1.0


@pytest.mark.parametrize("bad", [{"ns_steps": 5}, {"lr": -1.0}, {"cooldown": 1.5}, {"warmup_steps": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        OptimConfig(**bad)


def test_the_config_is_plain_data():
    assert to_dict(OptimConfig())["kind"] == "muon"
