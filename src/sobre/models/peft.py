"""Adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors, in and out.

A matrix W of the base has lora_A (R, I) and lora_B (O, R) under its name in the family's own form. Experts are written
one by one, as their weights are released; PEFT over `transformers` 5, which stacks experts with gate and up fused,
fuses these as it loads. Two turns of it are met on the way out:
- it doubles rank and alpha for the fused matrix, which under rank stabilisation changes the scale: adapters on experts
  are written with the plain scale, and an alpha that makes it equal;
- where a model has experts it takes every target called like an expert's matrix for the experts: those of dense layers
  and shared experts are written as target parameters.
What PEFT itself saves of stacked experts has one lora_A for gate and up together; it is refused on the way in.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sobre.errors import CheckpointError
from sobre.models.adapt import STACKED, adapt, adapters
from sobre.models.config import LoraConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.families.base import Family
from sobre.models.lora import StackedLoRA

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layer_replication": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_qalora": False,
    "alora_invocation_tokens": None,
}
"""What an adapter must be, where its config says: more than low-rank products is not known here."""
FUSED = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names of matrices that PEFT takes for experts' where the model has experts."""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, and not a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises CheckpointError when it is not that of low-rank adapters over a named base."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text())
        for key in ("base_model_name_or_path", "r", "lora_alpha"):
            if not found[key]:
                raise CheckpointError(f"{path}: {key}={found[key]!r}; it must be there")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is no adapter's config: {error!r}") from None
    for key, value in PLAIN.items():
        if found.get(key, value) != value and found[key]:
            raise CheckpointError(f"{path}: {key}={found[key]!r} is not supported; {key}={value!r} is")
    return found


def write_adapter(model: Decoder, family: Family, folder: Path, base: str) -> None:
    """Write the adapters of `model` over `base`, a folder or a hub id."""
    assert model.lora is not None, "the model has no adapters"
    folder.mkdir(parents=True, exist_ok=True)
    cfg, theirs = model.lora, _their_names(model, family)
    tensors: dict[str, Tensor] = {}
    modules: set[str] = set()
    found = adapters(model)
    for name, lora in found.items():
        their_name = theirs[name].removesuffix(".weight")
        if isinstance(lora, StackedLoRA):
            modules.add(their_name.rpartition(".")[2])
            for expert in range(lora.down_ERI.shape[0]):
                at = PREFIX + their_name.replace("{e}", str(expert))
                tensors[f"{at}.lora_A.weight"] = lora.down_ERI.data[expert].contiguous()
                tensors[f"{at}.lora_B.weight"] = lora.up_EOR.data[expert].contiguous()
        else:
            modules.add(their_name.split(".", 3)[3])  # what follows model.layers.3.
            tensors[f"{PREFIX}{their_name}.lora_A.weight"] = lora.down_RI.data
            tensors[f"{PREFIX}{their_name}.lora_B.weight"] = lora.up_OR.data
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    has_experts = isinstance(model.cfg.ffn, MoEConfig)
    as_parameters = {m for m in modules if has_experts and "." in m and m.rpartition(".")[2] in FUSED}
    plain_scale = any(isinstance(lora, StackedLoRA) for lora in found.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": cfg.rank,
        "lora_alpha": cfg.scale * cfg.rank if plain_scale else cfg.alpha,
        "use_rslora": cfg.rank_stabilised and not plain_scale,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({m.rpartition(".")[2] for m in modules - as_parameters}),
        "target_parameters": sorted(f"{m}.weight" for m in as_parameters) or None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_adapter(model: Decoder, family: Family, folder: Path) -> None:
    """Put the adapter of a folder onto its base, or into the same adapters of an adapted model.

    Raises CheckpointError naming what does not fit.
    """
    config = read_adapter_config(folder)
    rank, stabilised = int(config["r"]), bool(config.get("use_rslora"))
    tensors = _read_tensors(folder)
    pairs: dict[str, list[str]] = {}
    left = set(tensors)
    for ours, theirs in _their_names(model, family).items():
        n_experts = model.get_parameter(ours).shape[0] if "{e}" in theirs else 1
        at = [PREFIX + theirs.removesuffix(".weight").replace("{e}", str(e)) for e in range(n_experts)]
        wanted = {f"{one}.lora_{side}.weight" for one in at for side in "AB"}
        if wanted & left:
            if absent := sorted(wanted - left):
                raise CheckpointError(f"{folder}: the adapter lacks {absent[0]} ({len(absent)} in all)")
            pairs[ours] = at
            left -= wanted
    if left or not pairs:
        named = "; ".join(sorted(left)[:4])
        stacked = "; stacked experts as PEFT saves them share one lora_A for gate and up: merge them with PEFT"
        why = stacked if any(".experts.lora_" in name or ".base_layer." in name for name in left) else ""
        raise CheckpointError(f"{folder}: {len(left)} tensors of the adapter fit no weight of its base: {named}{why}")
    cfg = LoraConfig(rank=rank, alpha=float(config["lora_alpha"]), rank_stabilised=stabilised, parts=_parts(pairs))
    if model.lora is None:
        adapt(model, cfg, seed=0, names=pairs)
    found = adapters(model)
    if found.keys() != pairs.keys() or any(lora.scale != cfg.scale for lora in found.values()):
        raise CheckpointError(f"{folder}: the adapter adds to other weights, or in another scale, than the run's own")
    for name, lora in found.items():
        if isinstance(lora, StackedLoRA):
            places = list(zip(pairs[name], lora.down_ERI.data, lora.up_EOR.data, strict=True))
        else:
            places = [(pairs[name][0], lora.down_RI.data, lora.up_OR.data)]
        for one, down, up in places:
            for side, place in (("A", down), ("B", up)):
                stored = tensors[f"{one}.lora_{side}.weight"]
                if stored.shape != place.shape:
                    shapes = f"{tuple(stored.shape)}, the base and r={rank} ask for {tuple(place.shape)}"
                    raise CheckpointError(f"{folder}: {one}.lora_{side} is {shapes}")
                place.copy_(stored)


def _their_names(model: Decoder, family: Family) -> dict[str, str]:
    """Names of adaptable weights, ours to theirs; experts keep their `{e}`."""
    found: dict[str, str] = {}
    weights = dict(model.named_parameters())
    for theirs, ours in family.tensors:
        leaf = ours.rpartition(".")[2]
        if "{i}" not in theirs or not (leaf == "weight" or leaf in STACKED):
            continue
        for layer in range(model.cfg.n_layers):
            name = ours.replace("{i}", str(layer))
            if name in weights and weights[name].ndim > 1 and ".index." not in name:
                found.setdefault(name, theirs.replace("{i}", str(layer)))
    return found


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder} has {CONFIG} and no {WEIGHTS}; adapters are read as safetensors only")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is truncated or corrupt: {error}") from None
    return tensors


def _parts(names: dict[str, list[str]]) -> tuple[Any, ...]:
    kinds = {
        "experts" if name.rpartition(".")[2] in STACKED else "attention" if ".attn." in name else "dense"
        for name in names
    }
    return tuple(part for part in ("attention", "dense", "experts") if part in kinds)
