"""Started by torchrun: trains the same tiny model alone and under each layout, and writes how far the two differ.

The first process trains alone, without a group, and all processes train the layout; the comparison is of losses, of
the norms of the gradients, of router biases and of every weight, after the last step.
"""

import gc
import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import rollouts
import torch

from sobre.distill.on_policy import teacher_loss
from sobre.errors import RunError
from sobre.models.checkpoint import load_model
from sobre.models.config import DenseConfig, GQAConfig, MemoryConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.parallel.config import ParallelConfig
from sobre.parallel.division import Division
from sobre.rl.config import GRPOConfig, GSPOConfig, RLConfig
from sobre.rl.losses import policy_loss
from sobre.runtime.processes import Processes
from sobre.train import export
from sobre.train.batch import Batch, from_rows, from_samples
from sobre.train.divide import divide
from sobre.train.export import save_divided
from sobre.train.losses import Loss, LossFn, next_token
from sobre.train.pieces import mine
from sobre.train.resume import load_state
from sobre.train.state import save_state, saved_steps
from sobre.train.step import train_step

torch.set_num_threads(1)
MOE = ModelConfig(
    vocab_size=61,
    max_len=32,
    d_model=16,
    n_layers=3,
    attention=MLAConfig(n_heads=2, q_rank=8, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=8, d_ff=24, balance_alpha=0.01, bias_speed=0.01),
    n_mtp=1,
    memory=MemoryConfig(layers=(0, 1), n_rows=37, dim=4),
)
DENSE = replace(
    MOE,
    attention=GQAConfig(n_heads=4, n_kv_heads=2, head_dim=8, qk_norm=True, qkv_bias=True, o_bias=True),
    ffn=DenseConfig(d_ff=24),
    rope=RopeConfig(interleaved=False),
    n_mtp=0,
)
STEPS = {"float64": 4, "float32": 20}


def batches(case: dict[str, Any], step: int) -> list[Batch]:
    """Two micro-batches of one optimizer step, the same in every process."""
    stage, generator = case.get("stage", "pretrain"), torch.Generator().manual_seed(1000 + step)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, 61, (n,), generator=generator).tolist()

    if stage == "pretrain":
        return [from_rows(torch.tensor([tokens(17) for _ in range(n)])) for n in (3, 4)]
    lengths = ((9, 20, 5), (14,))  # the second leaves nothing to one of two processes
    found = [from_samples([(tokens(n), [0] * 3 + [1] * (n - 3)) for n in part]) for part in lengths]
    if stage == "sft":
        return found
    if stage == "distill":
        with torch.no_grad():
            return [replace(batch, streams={"teacher_NE": teacher()(batch.step).hidden_ND}) for batch in found]
    return [as_rollout(batch, generator, replay=case.get("replay", False)) for batch in found]


def as_rollout(batch: Batch, generator: torch.Generator, *, replay: bool) -> Batch:
    """What a sampler would say of the tokens; the experts that it chose, to be compared or replayed."""
    weights_RE = torch.rand(MOE.n_moe_layers, batch.n_tokens, MOE.ffn.n_experts, generator=generator)
    routes_LNA = weights_RE.topk(MOE.ffn.n_active).indices
    answer_N = batch.step.sequence_N
    lengths_R = torch.zeros(batch.step.n_sequences).index_add(0, answer_N, batch.weights_N)
    streams = {
        "behaviour": torch.rand(batch.n_tokens, generator=generator) - 4.5,
        "advantage": torch.randn(batch.step.n_sequences, generator=generator)[answer_N],
        "reference": torch.rand(batch.n_tokens, generator=generator) - 4.5,
        "answer": answer_N,
        "engine_routes_LNA": routes_LNA,
    }
    weights_N = batch.weights_N / lengths_R[answer_N]
    return replace(batch, weights_N=weights_N, routes_LNA=routes_LNA if replay else None, streams=streams)


@cache
def teacher() -> Decoder:
    """Of another width than the student, whole in every process."""
    found = Decoder(replace(DENSE, d_model=24), dtype=torch.float64)
    found.init_weights(6)
    with torch.no_grad():
        found.head_VD.mul_(8.0)  # sure of what it says
    return found.double().eval()


def loss_of(case: dict[str, Any]) -> LossFn:
    match case.get("stage"):
        case "distill":
            return teacher_loss(teacher(), MOE.vocab_size, beta=0.5)
        case "rl":
            return policy_loss(
                RLConfig(algorithm=GSPOConfig(clip_low=0.2, clip_high=0.2) if "answers" in case else GRPOConfig(kl=0.1))
            )
    return next_token


def poisoned(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
    return Loss(next_token(model, output, batch).sum * torch.nan)


def dtype_of(case: dict[str, Any]) -> torch.dtype:
    found: torch.dtype = getattr(torch, case.get("dtype", "float64"))
    return found


def build(cfg: ModelConfig, dtype: torch.dtype) -> Decoder:
    model = Decoder(cfg, dtype=dtype)
    model.init_weights(5)
    return model.to(dtype).train()


@dataclass
class Learner:
    """A model under one layout, and what it learns with."""

    case: dict[str, Any]
    processes: Processes | None
    model: Decoder
    division: Division | None
    optimizer: Optimizer
    poisoned: bool = False
    """Whether the losses of this process are not numbers."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rerouted: list[float | None] = field(default_factory=list)
    accepted: list[float | None] = field(default_factory=list)
    """How often MTP was right."""

    def weights(self) -> dict[str, torch.Tensor]:
        whole = self.model
        if self.division is not None:
            whole = Decoder(self.model.cfg, dtype=self.model.dtype).to(self.model.dtype)
            self.division.copy_into(whole, self.model)
        return {name: tensor.detach().clone() for name, tensor in whole.state_dict().items()}


def learner(case: dict[str, Any], layout: dict[str, Any] | None, processes: Processes | None) -> Learner:
    dtype = dtype_of(case)
    groups = {"n_groups": case["groups"], "n_active_groups": 1} if "groups" in case else {}
    heads = replace(DENSE.attention, n_kv_heads=case.get("kv_heads", 2))
    cfg = replace(DENSE, attention=heads) if case.get("dense") else replace(MOE, ffn=replace(MOE.ffn, **groups))
    memory = MemoryConfig() if "context" in case["layout"] | case.get("then", {}) else cfg.memory  # it is refused there
    model = build(replace(cfg, n_layers=case.get("layers", cfg.n_layers), memory=memory), dtype)
    model.recompute = case.get("recompute", False)
    division = None if processes is None else divide(model, ParallelConfig(**layout or {}), processes)
    names = dict(model.named_parameters())
    optimizer = Optimizer(
        names,
        roles(names),
        OptimConfig(kind=case.get("optim", "muon")),
        dtype=dtype,
        matrices=division,
    )
    return Learner(case, processes, model, division, optimizer)


def train(found: Learner, first: int, last: int) -> None:
    stage, division, model = found.case.get("stage", "pretrain"), found.division, found.model
    for step in range(first, last):
        info = train_step(
            model,
            found.optimizer,
            [mine(batch, division) for batch in batches(found.case, step)],
            poisoned if found.poisoned else loss_of(found.case),
            lr_scale=0.5,
            clip=1.0,
            mtp_weight=0.3 if stage in ("pretrain", "sft") else 0.0,
            rebalance=stage != "rl",
            watch=True,
            division=division,
        )
        found.losses.append(info.loss)
        found.norms.append(info.grad_norm)
        found.rerouted.append(info.rerouted)
        found.accepted.append(info.mtp_acceptance)


def refused(case: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """A step in which one process has NaN: what each says of it, and what moved."""
    found = learner(case, case["layout"], processes)
    before = found.weights()
    found.poisoned = processes.rank == case["poisoned"]
    said = ""
    try:
        train(found, 0, 1)
    except RunError as error:
        said = str(error)
    after = found.weights()
    moved = max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())
    found.poisoned = False
    train(found, 0, 1)
    healthy = max(float((found.weights()[name] - tensor).abs().max()) for name, tensor in before.items())
    return {"said": processes.gather(said), "moved": moved, "healthy": healthy}


def disk_full(case: dict[str, Any], processes: Processes, folder: Path) -> dict[str, Any]:
    """The second state does not fit on the disk of one process: what each says, and what is left to go on from."""
    found = learner(case, case["layout"], processes)
    train(found, 0, 1)
    save(found, folder / "state", 1)
    kept = found.weights()
    train(found, 1, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = ""
    if processes.rank == case["full"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        save(found, folder / "state", 2)
    except RunError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = sorted(path.name for path in (folder / "state").iterdir())
    said_by = processes.gather(said)
    load_state(folder / "state", found.model, found.optimizer, division=found.division, processes=processes)
    back = max(float((found.weights()[name] - tensor).abs().max()) for name, tensor in kept.items())
    save(found, folder / "state", 2)
    return {"said": said_by, "left": left, "back": back, "then": saved_steps(folder / "state")}


def compare(alone: Learner, together: Learner, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Largest relative differences; weights and biases over the largest number of their tensor."""
    found: dict[str, Any] = {}
    for key in ("losses", "norms"):
        pairs = zip(getattr(alone, key), getattr(together, key), strict=True)
        found[key] = max(abs(a - b) / abs(a) for a, b in pairs)
    gaps = {}
    for name, one in alone.weights().items():
        gaps[name] = float((one - weights[name]).abs().max() / one.abs().max().clamp_min(1e-30))
    worst = max(gaps, key=lambda name: gaps[name])
    return found | {
        "weights": gaps[worst],
        "worst": worst,
        "first_loss": alone.losses[0],
        "rerouted": [alone.rerouted, together.rerouted],
        "accepted": [alone.accepted, together.accepted],
    }


def exported(found: Learner, weights: dict[str, torch.Tensor], folder: Path) -> float:
    """How far the model folder that all processes write together is from the weights."""
    if found.division is None or found.division.is_whole or found.processes is None:
        return 0.0
    save_divided(found.model, found.division, found.processes, folder, extra={}, file_bytes=10_000)
    read = load_model(folder).state_dict()
    return max(float((read[name] - tensor).abs().max()) for name, tensor in weights.items())


def export_held(case: dict[str, Any], processes: Processes, folder: Path) -> dict[str, Any]:
    """The most bytes that any process holds beside its part of the model while all write the model's folder."""
    found, most, true = learner(case, case["layout"], processes), 0, export._my_tensors
    assert found.division is not None
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors()}
    gc.freeze()  # what is there already is not looked through again

    def watched(*args: Any) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for named in true(*args):
            storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors()}
            most = max(most, sum(size for place, size in storages.items() if place not in known))
            yield named

    export._my_tensors = watched
    save_divided(found.model, found.division, processes, folder, extra={}, file_bytes=case["file_bytes"])
    export._my_tensors = true
    gc.unfreeze()
    whole = load_model(folder).state_dict().values()
    sizes = [tensor.nbytes for tensor in whole]
    return {"most": max(processes.gather(most)), "largest": max(sizes), "model": sum(sizes)}


def tensors() -> list[torch.Tensor]:
    """All with memory of their own that live in this process, views included."""
    found = [it for it in gc.get_objects() if type(it) in (torch.Tensor, torch.nn.Parameter)]
    return [it for it in found if it.layout is torch.strided and not it.is_meta]


def run(case: dict[str, Any], processes: Processes, folder: Path) -> dict[str, Any]:
    """Train under the layout, half way under `then` if there is one, with a saved state in between."""
    if "poisoned" in case:
        return refused(case, processes)
    if "rollouts" in case:
        return rollouts.compare(replace(MOE, memory=MemoryConfig()), case["layout"], processes)
    if "file_bytes" in case:
        return export_held(case, processes, folder)
    if "full" in case:
        return disk_full(case, processes, folder)
    steps = STEPS[case.get("dtype", "float64")]
    together = learner(case, case["layout"], processes)
    train(together, 0, steps // 2 if "then" in case else steps)
    if "then" in case:
        save(together, folder / "state", steps // 2)
        before, together = together, learner(case, case["then"], processes)
        together.losses, together.norms, together.rerouted = before.losses, before.norms, before.rerouted
        together.accepted = before.accepted
        load_state(
            folder / "state", together.model, together.optimizer, division=together.division, processes=processes
        )
        train(together, steps // 2, steps)
    weights = together.weights()
    gap = exported(together, weights, folder / "model")
    here_numel = sum(part.numel() for part in together.optimizer.here.values())
    if not processes.is_first:
        return {}
    alone = learner(case, None, None)
    start = alone.weights()["layers.1.attn.o.weight"]
    train(alone, 0, steps)
    moved = float((alone.weights()["layers.1.attn.o.weight"] - start).abs().max())
    return compare(alone, together, weights) | {
        "moved": moved,
        "exported": gap,
        "held": here_numel / sum(part.numel() for part in alone.optimizer.here.values()),
    }


def save(found: Learner, folder: Path, step: int) -> None:
    save_state(
        folder,
        step,
        found.model,
        found.optimizer,
        {},
        keep=2,
        division=found.division,
        processes=found.processes,
    )


def main(cases: Path, out: Path) -> None:
    processes = Processes.start()
    wanted = json.loads(cases.read_text())
    found = {name: run(case, processes, out.parent / str(n)) for n, (name, case) in enumerate(wanted.items())}
    if processes.is_first:
        out.write_text(json.dumps(found))
    processes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
