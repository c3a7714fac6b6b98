"""sobre bench families: the forward pass of each family, and decoding at a long context, against `transformers`.

A family's small model with random weights is saved in its own layout and loaded by both sides in float32. Logits are
compared; then a forward pass over `rows` rows is timed, ours in the form of training, theirs with `use_cache=False` and
the faster of its experts. Decoding is of a model with latent attention and experts: the time of
`1 + new` tokens after a prompt of `context`, less that of one, so that the prompt's own pass is not counted.

Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from sobre.bench import ours, peer
from sobre.bench.config import FamiliesBench
from sobre.bench.decode import random_ids
from sobre.bench.result import Result, checked
from sobre.bench.shapes import FAMILY_SHAPES
from sobre.bench.timing import Round, Say, Timing, Work, as_json, interleave, medians, ratio
from sobre.config.load import to_dict
from sobre.errors import RunError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

LOGITS = 1e-4
"""Largest difference of a logit, in float32."""
FORWARD, DECODE = 1.0, 3.0
"""Times the peer's speed, at least."""
SIDES = ("sobre", "transformers")


def bench(cfg: FamiliesBench, say: Say) -> Result:
    """Family by family: check, then time; then decoding."""
    torch.set_num_threads(cfg.threads)
    check, notes = [], []
    rounds: list[Round] = [{} for _ in range(cfg.rounds)]
    units: dict[str, float] = {}
    pairs: list[tuple[str, str, float]] = []
    for family in cfg.families:
        mine, theirs = _both(FAMILY_SHAPES[family], family, cfg.seed)
        rows_BT = torch.tensor(random_ids(cfg.seed, cfg.rows, cfg.seq_len, mine.cfg.vocab_size))
        works = {f"sobre {family}": _forward(mine, rows_BT), f"transformers {family}": _their_forward(theirs, rows_BT)}
        experts = peer.faster_experts(theirs, works[f"transformers {family}"])
        works[f"transformers {family}"] = peer.with_experts(theirs, experts, works[f"transformers {family}"])
        logits = [work() for work in works.values()]
        check.append(checked(f"{family}: largest difference of a logit", _apart(logits), LOGITS))
        say(f"{family}: logits {check[-1]['value']:.2g} apart (at most {LOGITS:.0e})")
        _merge(rounds, interleave(works, rounds=cfg.rounds, warmup=cfg.warmup, say=say))
        units |= dict.fromkeys(works, float(rows_BT.numel()))
        pairs.append((f"sobre {family}", f"transformers {family}", FORWARD))
    if cfg.new:
        _merge(rounds, _decoding(cfg, say))
        units |= {f"{side} decode at {cfg.context}": float(cfg.new) for side in SIDES}
        pairs.append((f"sobre decode at {cfg.context}", f"transformers decode at {cfg.context}", DECODE))
        notes.append(f"decode: {cfg.new} tokens of one request after {cfg.context}, the prompt's pass subtracted")
    body = {
        "rounds": as_json(rounds),
        "medians": medians(rounds, units, "tokens"),
        "ratios": [ratio(rounds, of, over, units=units, target=target) for of, over, target in pairs],
    }
    return Result("families", "timing", to_dict(cfg), cfg.threads, check, body, tuple(notes))


def _both(shape: ModelConfig, family: str, seed: int) -> tuple[Decoder, object]:
    """The same weights on both sides."""
    with TemporaryDirectory() as place:
        model = ours.build(shape, seed)
        model.family = family
        save_model(model, place)
        return load_model(place), peer.load_peer(Path(place))


def _forward(model: Decoder, rows_BT: Tensor) -> Work:
    step = StepInput(rows_BT.flatten(), lengths=(rows_BT.shape[1],) * rows_BT.shape[0])

    @torch.inference_mode()
    def run() -> Tensor:
        return model.logits(model(step).hidden_ND).view(*rows_BT.shape, -1)

    return run


def _their_forward(model: object, rows_BT: Tensor) -> Work:
    @torch.inference_mode()
    def run() -> Tensor:
        logits_BTV: Tensor = model(rows_BT, use_cache=False).logits  # type: ignore[operator]
        return logits_BTV

    return run


def _apart(logits: Sequence[object]) -> float:
    ours_BTV, theirs_BTV = logits
    assert isinstance(ours_BTV, Tensor)
    assert isinstance(theirs_BTV, Tensor)
    return float((ours_BTV - theirs_BTV).abs().max())


def _decoding(cfg: FamiliesBench, say: Say) -> list[Round]:
    """What `new` tokens take beyond the first one."""
    shape = replace(cfg.model, max_len=cfg.context + cfg.new + 1)
    mine, theirs = _both(shape, "deepseek_v3", cfg.seed)
    prompt = random_ids(cfg.seed, 1, cfg.context, shape.vocab_size)
    few = peer.generation(theirs, prompt, 2)
    experts = peer.faster_experts(theirs, few)
    works: dict[str, Work] = {}
    for n_new in (1, 1 + cfg.new):
        works[f"sobre {n_new}"] = ours.generation(mine, prompt, [n_new])
        works[f"transformers {n_new}"] = peer.with_experts(theirs, experts, peer.generation(theirs, prompt, n_new))
    timed = interleave(works, rounds=cfg.rounds, warmup=cfg.warmup, say=say)
    return [
        {
            f"{side} decode at {cfg.context}": _less(round_[f"{side} {1 + cfg.new}"], round_[f"{side} 1"])
            for side in SIDES
        }
        for round_ in timed
    ]


def _less(long: Timing, short: Timing) -> Timing:
    less = Timing(long.wall_s - short.wall_s, long.cpu_s - short.cpu_s)
    if less.wall_s <= 0 or less.cpu_s < 0:
        raise RunError(f"a longer answer took {less.wall_s:.2g} s more than one token: too noisy here; raise --new")
    return less


def _merge(rounds: list[Round], more: Sequence[Round]) -> None:
    for round_, new in zip(rounds, more, strict=True):
        round_ |= new
