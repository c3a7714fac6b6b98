"""What one accelerator does: shares of its own measured peak and bandwidth, one part to a process, one file to a part.

    python -m sobre.bench.gpu PART --out FILE
    parts: peak, train, train-1b, dense, recompute, compiled, fp8, decode, transformers, prefill, kernels, rl

`make gpu` runs them all (scripts/gpu.py). Needs torch and numpy alone, so that it runs on a bare machine; the part
that is set beside transformers needs that. Without an accelerator the sizes are tiny, and the figures say that
everything runs and nothing else. Weights are random and drawn on the device; each part measures the matrix peak and the
bandwidth it is compared with in its own process.

Shapes: B rows, T positions, R rows of a batch, V vocabulary.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sobre.bench.result import Result, save
from sobre.bench.shapes import SMALL, dense_twin
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import RunError
from sobre.kernels import experts, flash_mla, select
from sobre.kernels.paged import Places
from sobre.models.config import BLOCK, DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.low_precision import set_precision
from sobre.models.regions import compile_layers
from sobre.models.step import StepInput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.plan.card import Load, Sampler, settle
from sobre.plan.card import parts as held
from sobre.plan.count import cache_bytes_per_token, forward_flops, params, train_flops
from sobre.plan.outline import outline
from sobre.rl.batch import microbatches, to_batch, to_samples
from sobre.rl.config import GRPOConfig, RLConfig
from sobre.rl.losses import policy_loss
from sobre.rl.types import Group, Rollout
from sobre.runtime.device import bytes_per_s, device_name, pick_device, product_rates, timed
from sobre.tasks.base import Problem
from sobre.tasks.format import Reward
from sobre.train.batch import Batch, from_rows
from sobre.train.config import Precision
from sobre.train.losses import next_token
from sobre.train.step import train_step

MIDDLE = ModelConfig(
    vocab_size=32768,
    max_len=2048,
    d_model=1024,
    n_layers=16,
    attention=MLAConfig(n_heads=16, q_rank=512, kv_rank=256, nope_dim=64, rope_dim=32, v_dim=64),
    ffn=MoEConfig(n_experts=32, n_active=4, d_expert=1280, n_shared=1, n_dense_layers=1, d_ff=4096),
)
"""About 0.4B active of 2.1B."""
LARGE = ModelConfig(
    vocab_size=32768,
    max_len=2048,
    d_model=1536,
    n_layers=20,
    attention=MLAConfig(n_heads=16, q_rank=768, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    ffn=MoEConfig(n_experts=16, n_active=4, d_expert=1536, n_shared=1, n_dense_layers=1, d_ff=6144),
)
"""About 1B active of 2.6B."""
QWEN = ModelConfig(
    vocab_size=151936,
    max_len=2048,
    d_model=1024,
    n_layers=28,
    attention=GQAConfig(n_heads=16, n_kv_heads=8, head_dim=128, qk_norm=True),
    ffn=DenseConfig(d_ff=3072),
    tied=True,
)
"""The shape of Qwen3-0.6B."""
TINY = replace(SMALL, vocab_size=512, max_len=128, d_model=64, n_layers=2)
TARGETS = {
    "share of peak": ">= 0.35, aim 0.45",
    "fp8 over bf16": "aim 1.3",
    "share of bandwidth": "aim 0.6 at batch 1",
    "peak memory over plan": "within 0.15 of 1",
}
SAME_LOGITS = 0.05
"""Largest difference of logits in bfloat16, relative to their norm: experts that nearly tie may be chosen otherwise."""


@dataclass(frozen=True)
class Place:
    """Where a part runs, and in which sizes."""

    device: torch.device
    full: bool

    def model(self, cfg: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Decoder:
        """A model of this shape (tiny without an accelerator) with random weights, drawn where it lies: every time the
        same."""
        cfg = cfg if self.full else (TINY if cfg.ffn.kind == "moe" else dense_twin(TINY))
        with torch.device(self.device):
            model = Decoder(cfg, dtype=dtype)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(0.0, 0.02)
        return model

    def batch(self, cfg: ModelConfig, rows: int, length: int) -> Batch:
        tokens_BT1 = torch.randint(0, cfg.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
        return from_rows(tokens_BT1)

    def flops_peak(self) -> float:
        """The best matrix product in bfloat16 here."""
        return max(product_rates(self.device, torch.bfloat16, 0.8 if self.full else 0.05))

    def bandwidth(self) -> float:
        return max(bytes_per_s(self.device, 2**32 if self.full else 2**24, 0.4 if self.full else 0.02))

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def peak_bytes(self) -> float | None:
        return float(torch.cuda.max_memory_allocated(self.device)) if self.device.type == "cuda" else None


def peak(place: Place) -> dict[str, Any]:
    """Matrix products in three formats, and the copy: what everything else is a share of."""
    found: dict[str, Any] = {"bandwidth_bytes_per_s": place.bandwidth()}
    for name, dtype in [("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp8", torch.float8_e4m3fn)]:
        rates = product_rates(place.device, dtype, 0.6 if place.full else 0.05)
        found[f"{name}_best"] = max(rates, default=None)
        found[f"{name}_median"] = median(rates) if rates else None
    return found


def train(
    place: Place,
    cfg: ModelConfig = MIDDLE,
    precision: Precision = "auto",
    micros: int = 4,
    *,
    recompute: bool = False,
    compiles: str = "",
) -> dict[str, Any]:
    """Optimizer steps of 65,536 tokens in micro-batches: speed, share of the bf16 peak, memory beside the plan's."""
    top = place.flops_peak()
    model = place.model(cfg)
    set_precision(model, precision)
    model.recompute = recompute
    if compiles:
        compile_layers(model, compiles)
    rows, length, micros, steps = (32 // micros, 2048, micros, 4) if place.full else (2, 64, 2, 2)
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig(kind="adamw"), dtype=model.dtype)
    batches = [place.batch(model.cfg, rows, length) for _ in range(micros)]

    def step() -> float:
        return train_step(model.train(), optimizer, batches, next_token, lr_scale=1e-3, clip=1.0).loss

    first = step()
    step()
    times = timed_calls(step, steps, place)
    flops = sum(train_flops(model.cfg, batch.step.lengths) for batch in batches)
    tokens = rows * length * micros
    load = Load(model=outline(model.cfg), tokens=rows * length)
    plan = sum(held(load, recompute=recompute, offload=False).values())
    used = place.peak_bytes()
    counted = params(model.cfg)
    return {
        "parameters": counted.total,
        "active": counted.active,
        "loss_first": first,
        "step_s": median(times),
        "tokens_per_s": tokens / median(times),
        "flops_per_s": flops / median(times),
        "peak_flops_per_s": top,
        "share_of_peak": flops / median(times) / top,
        "memory_bytes": used,
        "plan_bytes": plan,
        "memory_over_plan": None if used is None else used / plan,
    }


def fp8(place: Place) -> dict[str, Any]:
    """The same step in FP8 and in bfloat16, one after the other."""
    found = {"bf16": train(place), "fp8": train(place, precision="fp8")}
    return {
        "fp8_over_bf16": found["bf16"]["step_s"] / found["fp8"]["step_s"],
        "bf16_step_s": found["bf16"]["step_s"],
        "fp8_step_s": found["fp8"]["step_s"],
        "loss_first_difference": found["fp8"]["loss_first"] / found["bf16"]["loss_first"] - 1,
    }


def compiled(place: Place) -> dict[str, Any]:
    """The step with its layers compiled by region, over the same without; on a CPU nothing is compiled."""
    plain = train(place)
    ours = train(place, compiles="inductor" if place.full else "eager")
    return {
        "compiled_over_plain": plain["step_s"] / ours["step_s"],
        "plain_step_s": plain["step_s"],
        "compiled_step_s": ours["step_s"],
        "share_of_peak": ours["share_of_peak"],
        "memory_over_plan": ours["memory_over_plan"],
        "loss_first_difference": ours["loss_first"] / plain["loss_first"] - 1,
    }


def decode(place: Place) -> dict[str, Any]:
    """Tokens per second of the engine at several batches, and the bytes it must read over what the card can copy; how
    much faster its weights in 8 and 4 bits are."""
    width = place.bandwidth()
    model = place.model(MIDDLE).to(torch.bfloat16).eval()
    prompt, new = (512, 96) if place.full else (16, 8)
    counted = params(model.cfg)
    found: dict[str, Any] = {"bandwidth_bytes_per_s": width}
    for batch in (1, 16, 64) if place.full else (1, 4):
        sizes = EngineConfig(max_batch=batch, max_len=prompt + new, prefix_cache=False)
        engine = Engine(model, sizes)
        step_s = step_seconds(engine, batch, prompt, new)
        launched_s = step_seconds(Engine(model, replace(sizes, graphs="off")), batch, prompt, new)
        weights = 2.0 * (counted.active if batch == 1 else min(counted.total, counted.active * batch))
        read = weights + batch * (prompt + new / 2) * cache_bytes_per_token(model.cfg)
        found |= {
            f"b{batch}_tokens_per_s": batch / step_s,
            f"b{batch}_step_s": step_s,
            f"b{batch}_share_of_bandwidth": read / step_s / width,
            f"b{batch}_steps_recorded": engine.n_recorded,
            f"b{batch}_over_launched": launched_s / step_s,
        }
        for bits in ("int8", "int4"):
            rounded = Engine(model, replace(sizes, weights=bits))
            found[f"b{batch}_{bits}_over_bfloat16"] = step_s / step_seconds(rounded, batch, prompt, new)
    return found


def transformers(place: Place) -> dict[str, Any]:
    """A decode step of the engine and one of `transformers`, on the same weights; their logits are compared before."""
    from sobre.bench import peer  # what they import is not on a bare machine
    from sobre.models.checkpoint import save_model

    model = place.model(MIDDLE).to(torch.bfloat16).eval()
    with TemporaryDirectory() as folder:
        save_model(model, folder)
        theirs = peer.load_peer(Path(folder), torch.bfloat16).to(place.device)
    prompt, new = (512, 64) if place.full else (16, 6)
    tokens_N = torch.arange(prompt, device=place.device) % model.cfg.vocab_size
    with torch.inference_mode():
        ours_NV = model.logits(model(StepInput(tokens_N, (prompt,))).hidden_ND).float()
        theirs_NV = theirs(tokens_N.unsqueeze(0), use_cache=False).logits[0].float()
    gap = float((ours_NV - theirs_NV).norm() / theirs_NV.norm())
    if not gap <= SAME_LOGITS:
        raise RunError(f"logits differ from transformers' by {gap:.3g} of their norm, at most {SAME_LOGITS}; not timed")
    found: dict[str, Any] = {"logits_difference": gap}
    for batch in (1, 16) if place.full else (1, 2):
        engine = Engine(model, EngineConfig(max_batch=batch, max_len=prompt + new, prefix_cache=False))
        prompts = [[(i * 31 + j * 7) % model.cfg.vocab_size for j in range(prompt)] for i in range(batch)]
        experts = peer.faster_experts(theirs, peer.generation(theirs, prompts, 4))
        short_s, long_s = (
            min(timed_calls(peer.with_experts(theirs, experts, peer.generation(theirs, prompts, n)), 2, place))
            for n in (1, new)
        )
        ours_s, theirs_s = step_seconds(engine, batch, prompt, new), (long_s - short_s) / (new - 1)
        found |= {
            f"b{batch}_step_s": ours_s,
            f"b{batch}_transformers_step_s": theirs_s,
            f"b{batch}_over_transformers": theirs_s / ours_s,
            f"b{batch}_transformers_experts": experts,
        }
    return found


def prefill(place: Place) -> dict[str, Any]:
    """Prompt tokens per second, and their FLOPs as a share of the peak."""
    top = place.flops_peak()
    model = place.model(MIDDLE).to(torch.bfloat16).eval()
    batch, prompt = (16, 1024) if place.full else (2, 48)
    cfg = EngineConfig(max_batch=batch, max_len=prompt + 8, prefill_tokens=batch * prompt, prefix_cache=False)
    engine = Engine(model, cfg)
    seconds = min(answer(engine, batch, prompt, 1) for _ in range(3))
    flops = forward_flops(model.cfg, (prompt,) * batch, n_logits=batch)
    return {
        "tokens_per_s": batch * prompt / seconds,
        "share_of_peak": flops / seconds / top,
        "peak_flops_per_s": top,
    }


def kernels(place: Place) -> dict[str, Any]:
    """Each kernel for what torch does slowly, its bytes over the bandwidth, and what could run in its place."""
    width = place.bandwidth()
    n_tokens, d_model, d_expert, n_active, n_experts = (16384, 2048, 1408, 8, 64) if place.full else (33, 40, 24, 2, 5)
    generator = torch.Generator().manual_seed(0)
    chosen_NA = torch.rand(n_tokens, n_experts, generator=generator).topk(n_active).indices.to(place.device)
    rows = experts.order(chosen_NA, n_experts)

    def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=place.device, dtype=dtype)

    n_copies = n_tokens * n_active
    x_ND, y_MD = drawn(n_tokens, d_model), drawn(n_copies, d_model)
    gate_MF, up_MF, weights_M = drawn(n_copies, d_expert), drawn(n_copies, d_expert), drawn(n_copies)
    n_rows, n_heads, context = (64, 128, 4096) if place.full else (3, 5, 70)
    decodes = select.choose("latent_decode", place.device.type, torch.bfloat16).name
    block = flash_mla.PAGE if decodes == "flash_mla" else BLOCK
    n_blocks = -(-context // block)
    table_RB = torch.randperm(n_rows * n_blocks, generator=generator).view(n_rows, n_blocks).to(place.device)
    lengths_R = torch.full((n_rows,), context, device=place.device)
    places = Places(table_RB, lengths_R, context, block)
    cells_MC, q_RHC = drawn(n_rows * n_blocks * block, 576), drawn(n_rows, n_heads, 576)
    logits_RV = drawn(n_rows, 129_280 if place.full else 300, dtype=torch.float32)
    uniforms_R = torch.rand(n_rows, dtype=torch.float64, device=place.device)
    calls: dict[str, tuple[Callable[[], Any], float]] = {
        "take_rows": (lambda: select.take_rows(x_ND, *rows[1:3]), 2 * y_MD.nbytes),
        "sum_rows": (lambda: select.sum_rows(y_MD, *rows[1:3]), y_MD.nbytes + x_ND.nbytes),
        "weighted_swiglu": (lambda: select.weighted_swiglu(gate_MF, up_MF, weights_M), 3 * gate_MF.nbytes),
        "latent_decode": (lambda: select.latent_decode(q_RHC, cells_MC, places, 512, 0.1), cells_MC.nbytes),
        "draw": (lambda: select.draw(logits_RV, None, uniforms_R), 2 * logits_RV.nbytes),
    }
    found: dict[str, Any] = {"bandwidth_bytes_per_s": width}
    for op, (call, moved) in calls.items():
        kernel = select.choose(op, place.device.type, x_ND.dtype if op != "draw" else torch.float32)
        seconds = median(timed(call, place.device, 0.2 if place.full else 0.01))
        found |= {
            f"{op}_kernel": kernel.name,
            f"{op}_s": seconds,
            f"{op}_share_of_bandwidth": moved / seconds / width,
        }
        for other in rivals(kernel, place.device.type):
            with select.override(op, other):
                found[f"{op}_over_{other}"] = median(timed(call, place.device, 0.2 if place.full else 0.01)) / seconds
    return found


def rivals(kernel: select.Kernel, device: str) -> list[str]:
    """What else can run there for the operation of this one, in order of preference, as far as the first that needs
    neither a library nor triton: what would run on a bare torch."""
    dtype, names = kernel.dtypes[0] if kernel.dtypes else torch.bfloat16, list[str]()
    for other in select.KERNELS:
        if other.op == kernel.op and other.name != kernel.name and other.refuses(device, dtype) is None:
            names.append(other.name)
            if not other.devices:
                break
    return names


def rl(place: Place) -> dict[str, Any]:
    """A GRPO step in the shape of Qwen3-0.6B: 16 prompts, 8 answers of 128 tokens each, then one update; with what the
    plan gives up for a card of 24 GB (in tiny sizes, all that there is)."""
    model = place.model(QWEN)
    n_prompts, group_size, prompt, new = (16, 8, 64, 128) if place.full else (2, 2, 8, 6)
    cfg = RLConfig(algorithm=GRPOConfig(refill_rounds=0), n_prompts=n_prompts, group_size=group_size, max_tokens=new)
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig(kind="adamw"), dtype=model.dtype)
    engine = Engine(model.eval(), EngineConfig(max_batch=n_prompts * group_size, max_len=prompt + new))
    load = Load(
        model=outline(model.cfg),
        tokens=max(cfg.micro_tokens, prompt + new),
        sampler=Sampler(
            copy_bytes=2.0 * params(model.cfg).total, cache_bytes=engine.cache_bytes, at_once=n_prompts * group_size
        ),
    )
    how = settle(load, 24e9 if place.full else 0.0)
    model.recompute = how.recompute
    nobody = Problem(task="bench", lang="en", difficulty=1, prompt="", answer="", key="bench", data={})

    def roll_out(seed: int) -> list[Group]:
        asked = [tuple((7 * x + 3 * i) % 500 for i in range(prompt)) for x in range(n_prompts)]
        requests = [
            Request(f"{x}/{y}", ids, SamplingParams(max_tokens=new, seed=seed * 1000 + x * group_size + y))
            for x, ids in enumerate(asked)
            for y in range(group_size)
        ]
        outputs = engine.generate(requests)
        groups = []
        for x, ids in enumerate(asked):
            answers = []
            for output in outputs[x * group_size : (x + 1) * group_size]:
                reward = sum(token % 2 == 0 for token in output.token_ids) / new
                answers.append(
                    Rollout(ids, tuple(output.token_ids), tuple(output.logprobs), "", True, Reward(reward, 0.0, reward))
                )
            groups.append(Group(nobody, tuple(answers)))
        return groups

    times: list[tuple[float, float]] = []
    for number in range(4 if place.full else 2):
        place.wait()
        began = time.perf_counter()
        if how.offload:
            optimizer.zero_grad()
            optimizer.keep_on(torch.device("cpu"))
        groups = roll_out(number)
        if how.offload:
            engine.rest()
            optimizer.keep_on(place.device)
        middle = time.perf_counter()
        parts = microbatches(to_samples(groups, cfg), cfg.micro_tokens)
        batches = [to_batch(part, replay=False) for part in parts]
        train_step(model.train(), optimizer, batches, policy_loss(cfg), lr_scale=1e-3, clip=1.0, rebalance=False)
        model.eval()
        engine.weights_changed()
        place.wait()
        times.append((middle - began, time.perf_counter() - middle))
    rollouts, updates = zip(*times[1:], strict=True)
    tokens = n_prompts * group_size * new
    used = place.peak_bytes()
    return {
        "step_s": median(rollouts) + median(updates),
        "rollout_s": median(rollouts),
        "update_s": median(updates),
        "rollout_tokens_per_s": tokens / median(rollouts),
        "memory_bytes": used,
        "plan_bytes": how.planned,
        "recomputes": float(how.recompute),
        "takes_turns": float(how.offload),
        "memory_over_plan": None if used is None else used / how.planned,
        "fits_24_gb": None if used is None else float(used < 24e9),
    }


def step_seconds(engine: Engine, batch: int, prompt: int, new: int) -> float:
    """Of one decode step, the best of three: what more tokens take, but for the first time, when steps are recorded."""
    answer(engine, batch, prompt, new)
    short, long = (min(answer(engine, batch, prompt, n) for _ in range(3)) for n in (1, new))
    return (long - short) / (new - 1)


def answer(engine: Engine, batch: int, prompt: int, new: int) -> float:
    """Continue `batch` prompts, each to its full length; return the seconds."""
    vocab_size, before = engine.model.cfg.vocab_size, engine.stats.seconds
    engine.generate(
        [
            Request(str(i), tuple((i * 31 + j * 7) % vocab_size for j in range(prompt)), SamplingParams(max_tokens=new))
            for i in range(batch)
        ]
    )
    return engine.stats.seconds - before


def timed_calls(work: Callable[[], Any], count: int, place: Place) -> list[float]:
    """Seconds of each of `count` calls, the device's work included."""
    times = []
    for _ in range(count):
        place.wait()
        began = time.perf_counter()
        work()
        place.wait()
        times.append(time.perf_counter() - began)
    return times


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "peak": peak,
    "train": train,
    "train-1b": lambda place: train(place, LARGE, micros=8),
    "dense": lambda place: train(place, dense_twin(MIDDLE)),
    "recompute": lambda place: train(place, recompute=True),
    "compiled": compiled,
    "fp8": fp8,
    "decode": decode,
    "transformers": transformers,
    "prefill": prefill,
    "kernels": kernels,
    "rl": rl,
}


def main(argv: list[str] | None = None) -> int:
    """Run one part and write its file."""
    parser = argparse.ArgumentParser(prog="python -m sobre.bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    place = Place(device, full=device.type != "cpu")
    figures = PARTS[args.part](place)
    notes = () if place.full else ("no accelerator: tiny sizes, the figures say nothing of a GPU",)
    settings = {"part": args.part, "device": str(device), "name": device_name(device), "targets": TARGETS}
    chosen = {op: f"{name}: {reason}" for op, name, reason in select.describe()}
    cell = {"id": args.part, "contestant": args.part, "round": 0}
    body = {"cell": cell, "figures": {key: value for key, value in figures.items() if value is not None}}
    result = Result(f"gpu {args.part}", "cell", {**settings, "kernels": chosen}, None, [], body, notes)
    save(result.document(), str(args.out))
    print(json.dumps(body["figures"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
