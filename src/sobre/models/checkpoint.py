"""Model folders in the Hugging Face layout: config.json and model*.safetensors, in and out; adapters over them.

Tensors go one by one between the files and their place in the model. Nothing is unpickled or executed; a tensor that is
missing, unexpected or of the wrong shape is named, all of them at once, and nothing is loaded half.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sobre.errors import CheckpointError
from sobre.kernels.kept import FP8
from sobre.models.adapt import STACKED, merge, merged_state
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.families.base import Family
from sobre.models.families.memory import with_memory
from sobre.models.families.table import FAMILIES, family_of
from sobre.models.hub import resolve
from sobre.models.kept import FACTORS, QUANTIZATION, can_stay, keeps_fp8, make_room
from sobre.models.moe import MoE
from sobre.models.peft import CONFIG, is_adapter, read_adapter, read_adapter_config, write_adapter
from sobre.models.shards import SCALE, Shards

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


def save_model(
    model: Decoder, folder: Path | str, *, dtype: torch.dtype | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write config.json and model.safetensors; `extra` (token ids, for one) joins the config; adapters are merged.

    Raises CheckpointError when no open family can carry the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    family = family_for(model)
    dtype = dtype or model.embed.weight.dtype
    tensors = {
        name: tensor.to(saved_dtype(name, tensor, dtype)).contiguous() for name, tensor in _their_tensors(model, family)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kept = QUANTIZATION if keeps_fp8(model) else {}
    write_config(model.cfg, family, folder, dtype, {**kept, **(extra or {})})


def write_config(
    cfg: ModelConfig, family: Family, folder: Path, dtype: torch.dtype, extra: Mapping[str, Any] | None
) -> None:
    """The config.json of a model folder."""
    theirs = family.to_theirs(cfg)
    theirs |= {"architectures": [family.architecture], "model_type": family.model_type}
    theirs |= {"dtype": str(dtype).removeprefix("torch."), "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps({**theirs, **(extra or {})}, indent=2) + "\n")


def load_model(
    model: Path | str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    device: str = "cpu",
    keep_fp8: bool = False,
    progress: Progress | None = None,
) -> Decoder:
    """Load a folder or a hub id: weights in `dtype` (default: as saved), the forward in `compute_dtype` (the same).

    Tensors are read one by one into place, so the peak is the weights in `dtype` and one tensor more; FP8 blocks are
    multiplied out on the way, or stay as they are (models/kept.py). An adapter is merged into its base. `progress` is
    called with the bytes done and the bytes in all.
    Raises CheckpointError naming what is missing, unexpected, misshapen or unreadable.
    """
    folder = resolve(model, revision=revision)
    if is_adapter(folder):
        how: dict[str, Any] = {"dtype": dtype, "compute_dtype": compute_dtype, "device": device}
        decoder = load_adapted(folder, **how, keep_fp8=keep_fp8, progress=progress)
        merge(decoder)
        return decoder
    theirs = read_config(folder)
    family = _family_of(theirs, folder)
    _refuse_quantised(theirs, folder)
    if "auto_map" in theirs:
        # not refused: DeepSeek, Kimi, MiniMax and ERNIE name their own code in releases that are this family. Whatever
        # else it may name, every tensor of the files must be one of the family's, by name and shape
        log.warning("%s: its auto_map names Python code, which is never run; read as %s", folder, family.model_type)
    shards = Shards(folder)
    cfg = _without_absent_mtp(_ours(theirs, family, folder), shards)
    if cfg.n_layers > len(shards.stored):
        held = f"the files hold {len(shards.stored):,} tensors"
        raise CheckpointError(f"{folder}/config.json asks for {cfg.n_layers:,} layers, and {held}")
    dtype = dtype or _saved_in(theirs, folder)
    with torch.device("meta"):
        decoder = Decoder(cfg, dtype=compute_dtype or dtype)
    if keep_fp8:
        _keep_fp8(decoder, family, shards)
    _check(decoder, family, shards)
    _allocate(decoder, dtype, device)
    for router in decoder.routers():
        router.bias_E.zero_()
    decoder.family = str(theirs.get("base_model_type", family.model_type))
    _fill(decoder, family, shards, progress)
    return decoder.eval()


def _refuse_quantised(theirs: dict[str, Any], folder: Path) -> None:
    """FP8 blocks are read (models/shards.py); no other form of small weights is."""
    about = theirs.get("quantization_config") or {"quant_method": "fp8"}
    if not isinstance(about, dict) or "quant_method" not in about:
        raise CheckpointError(f"{folder}/config.json: quantization_config={about!r} is no table with a quant_method")
    if about["quant_method"] != "fp8":
        raise CheckpointError(
            f"{folder}: weights quantized by {about['quant_method']!r} are not supported; FP8 blocks are"
        )


def _saved_in(theirs: dict[str, Any], folder: Path) -> torch.dtype:
    """What config.json says that the weights are in; those of an FP8 release that are not FP8 are bfloat16."""
    name = theirs.get("dtype") or theirs.get("torch_dtype") or "float32"
    if str(name).startswith("float8"):
        return torch.bfloat16
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise CheckpointError(f"{folder}/config.json: dtype {name!r} is none that weights are loaded in; say another")
    found: torch.dtype = getattr(torch, name)
    return found


def _keep_fp8(model: Decoder, family: Family, shards: Shards) -> None:
    """Make room for the blocks of the files. Raises CheckpointError where there are none."""
    weights = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and can_stay(model, name)}
    for ours, theirs, form in their_names(model.cfg, family):
        dtypes = {shards.stored[name].dtype if name in shards.stored else None for name in theirs}
        if ours in weights and form != "lifted" and len(dtypes) == 1 and (dtype := dtypes.pop()) in FP8:
            if absent := [name for name in theirs if name + SCALE not in shards.stored]:
                raise CheckpointError(f"{shards.folder}: {absent[0]} is FP8 without {absent[0]}{SCALE}, its factors")
            make_room(model, ours, dtype, shards.stored[theirs[0] + SCALE].dtype)
    for at, module in model.named_modules():
        if isinstance(module, MoE) and len({getattr(module, leaf + FACTORS) is None for leaf in STACKED}) > 1:
            raise CheckpointError(f"{shards.folder}: some matrices of the experts of {at} are FP8 and some are not")
    if not keeps_fp8(model):
        raise CheckpointError(f"{shards.folder} holds no FP8 blocks to keep; without --dtype fp8 it loads as it is")


def save_adapter(model: Decoder, folder: Path | str, *, base: str) -> None:
    """Write the adapters of an adapted model in PEFT's format, over `base`: the folder or hub id that it came from."""
    write_adapter(model, family_for(model), Path(folder), base)


def load_adapted(model: Path | str, **how: Any) -> Decoder:
    """Load an adapter's folder and its base, the adapters beside the weights; `how` is that of `load_model`."""
    folder = resolve(model)
    config = read_adapter_config(folder)
    base = config["base_model_name_or_path"]
    if not (resolved := resolve(base, revision=config.get("revision"))).is_dir():
        raise CheckpointError(f"{folder}: its base {base} is not here; correct base_model_name_or_path in {CONFIG}")
    decoder = load_model(resolved, **how)
    read_adapter(decoder, family_for(decoder), folder)
    return decoder.eval()


def take_adapter(model: Decoder, folder: Path) -> None:
    """Fill the adapters of an adapted model from a folder."""
    read_adapter(model, family_for(model), folder)


def base_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, or of the base of an adapter."""
    if not is_adapter(folder):
        return read_config(folder)
    config = read_adapter_config(folder)
    return base_config(resolve(config["base_model_name_or_path"], revision=config.get("revision")))


def _allocate(model: Decoder, dtype: torch.dtype, device: str) -> None:
    """Memory for what lies on the meta device, parameters in `dtype` or FP8; the table of the rope is there already.

    Not Module.to_empty: its `empty_like` of meta tensors imports torch's compiler, which takes seconds.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            own = parameter.dtype if parameter.dtype in FP8 else dtype
            place = torch.empty(parameter.shape, dtype=own, device=device)
            setattr(module, name, nn.Parameter(place, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            there = (
                torch.empty(buffer.shape, dtype=buffer.dtype, device=device) if buffer.is_meta else buffer.to(device)
            )
            setattr(module, name, there)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises CheckpointError when there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    try:
        theirs = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(theirs, dict) or "model_type" not in theirs:
        raise CheckpointError(f"{path} has no model_type; it is not the config of a model")
    return theirs


def model_config(model: Path | str) -> ModelConfig:
    """The sizes of a folder or hub id, without its weights."""
    folder = resolve(model)
    theirs = read_config(folder)
    return _ours(theirs, _family_of(theirs, folder), folder)


def _ours(theirs: dict[str, Any], family: Family, folder: Path) -> ModelConfig:
    try:
        cfg = family.to_ours(theirs)
        if faults := list(_unsound(cfg)):
            raise CheckpointError(f"{folder}/config.json cannot be that of a model: {'; '.join(faults)}")
        return cfg
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be that of a model: {error!r}") from None
    except KeyError as error:
        absent = f"{folder}/config.json lacks {error.args[0]!r}, which {family.model_type} needs"
        raise CheckpointError(absent) from None


SIZES = (
    "vocab_size",
    "d_model",
    "n_layers",
    "max_len",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "kv_rank",
    "v_dim",
    "d_ff",
)


def _unsound(part: Any, at: str = "") -> Iterator[str]:
    """What in our config is no number that a model can have, in our words."""
    for field in dataclasses.fields(part):
        name, value = f"{at}{field.name}", getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from _unsound(value, f"{name}.")
        elif field.type is int and (type(value) is not int or not (field.name in SIZES) <= value < 2**40):
            yield f"{name}={value!r}"
        elif field.type in (float, float | None) and not (value is None or _is_finite(value)):
            yield f"{name}={value!r}"
        elif field.type is bool and type(value) is not bool:
            yield f"{name}={value!r}"


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _family_of(theirs: dict[str, Any], folder: Path) -> Family:
    family = family_of(theirs)
    if family is not None:
        return family
    known = ", ".join(family.model_type for family in FAMILIES)
    code = "; its auto_map names Python code, which is never run" if "auto_map" in theirs else ""
    raise CheckpointError(f"{folder}/config.json: model_type {theirs['model_type']!r} is unknown; known: {known}{code}")


def family_for(model: Decoder) -> Family:
    """The family that the model came from, or the first that can carry it."""
    cfg = model.cfg
    for family in sorted(FAMILIES, key=lambda family: family.model_type != model.family):
        if family.accepts(cfg):
            return with_memory(family) if cfg.memory.layers else family
    raise CheckpointError(
        f"no open family carries {cfg.attention.kind} attention (rope interleaved: {cfg.rope.interleaved}) with"
        f" {cfg.ffn.kind} feed-forward and n_mtp={cfg.n_mtp}; mla goes with either feed-forward (deepseek_v3); gqa with"
        f" a dense one without mtp (llama; interleaved: ernie4_5); gqa with experts when the router has softmax and no"
        f" bias (qwen3_moe), softmax and a bias, interleaved (ernie4_5_moe), or sigmoid and a bias (glm4_moe)"
    )


def _without_absent_mtp(cfg: ModelConfig, shards: Shards) -> ModelConfig:
    """Transformers keeps `num_nextn_predict_layers` in the config but drops the module's weights when it saves."""
    if not cfg.n_mtp or shards.has_prefix(f"model.layers.{cfg.n_layers}."):
        return cfg
    log.warning("%s: the MTP module of config.json is not in the weights; loaded without it", shards.folder)
    return dataclasses.replace(cfg, n_mtp=0)


def saved_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The selection bias stays in float32 whatever the weights are in, classes stay whole numbers, FP8 blocks FP8."""
    if not tensor.is_floating_point() or tensor.dtype in FP8 or name.endswith(SCALE):
        return tensor.dtype
    return torch.float32 if name.endswith("e_score_correction_bias") else dtype


def tensor_places(model: Decoder, family: Family) -> Iterator[tuple[str, Tensor]]:
    """(their name, the place in our model), every tensor of the model once, experts as views of the stack."""
    places = model.state_dict() if model.lora is None else merged_state(model)
    for ours, theirs, form in their_names(model.cfg, family):
        if ours in places:
            yield from zip(theirs, as_theirs(places[ours].data, form), strict=True)
        if ours + FACTORS in places:
            factors = as_theirs(places[ours + FACTORS], form)
            yield from zip((name + SCALE for name in theirs), factors, strict=True)


Form = Literal["stack", "lifted", "same"]


def as_theirs(tensor: Tensor, form: Form) -> Sequence[Tensor]:
    """Views of one of our tensors: each expert of a stack, or the tensor, with one more dimension if theirs has it."""
    return tensor.unbind() if form == "stack" else [tensor[None] if form == "lifted" else tensor]


def their_names(cfg: ModelConfig, family: Family) -> Iterator[tuple[str, list[str], Form]]:
    """(our name, their name or that of each expert, how ours becomes theirs), for every tensor of this family."""
    n_experts = cfg.ffn.n_experts if isinstance(cfg.ffn, MoEConfig) else 0
    for their_pattern, our_pattern in family.tensors:
        their_pattern = their_pattern.replace("{m}", str(cfg.n_layers))
        for layer in range(cfg.n_layers if "{i}" in their_pattern else 1):
            ours = our_pattern.removesuffix("[None]").replace("{i}", str(layer))
            name = their_pattern.replace("{i}", str(layer))
            if "{e}" in name:
                yield ours, [name.replace("{e}", str(e)) for e in range(n_experts)], "stack"
            else:
                yield ours, [name], "lifted" if our_pattern.endswith("[None]") else "same"


def _their_tensors(model: Decoder, family: Family) -> Iterator[tuple[str, Tensor]]:
    yield from tensor_places(model, family)
    if model.mtp is not None:
        originals = {"embed.weight": model.embed.weight.data, "head.weight": model.head_VD.data}
        for pattern, ours in family.copies:
            yield pattern.replace("{m}", str(model.cfg.n_layers)), originals[ours].clone()


@torch.no_grad()
def _fill(model: Decoder, family: Family, shards: Shards, progress: Progress | None) -> None:
    places = dict(tensor_places(model, family))
    done, total = 0, sum(shards.stored[name].size_bytes for name in places)
    for name in sorted(places, key=lambda name: (shards.stored[name].file, shards.stored[name].begin)):
        shards.read_into(name, places[name])
        done += shards.stored[name].size_bytes
        if progress is not None:
            progress(done, total)


def _check(model: Decoder, family: Family, shards: Shards) -> None:
    """Raise CheckpointError that names all that is missing, unexpected or of another shape or kind.

    Memory is not needed for it: a config that asks for too much is refused before it is given.
    """
    wanted = dict(tensor_places(model, family))
    copies = {pattern.replace("{m}", str(model.cfg.n_layers)) for pattern, _ in family.copies}
    if model.cfg.tied:
        copies.add("lm_head.weight")
    others = [name for name in shards.names if name not in wanted]
    left = [name for name in others if name.startswith(family.without)]
    faults = [
        f"unexpected {name}"
        for name in others
        if name not in left and name not in copies and not name.endswith(family.derived)
    ]
    faults += [
        f"{name} is {shards.stored[name].shape}, the config asks for {tuple(place.shape)}"
        for name, place in wanted.items()
        if name in shards.stored and shards.stored[name].shape != place.shape
    ]
    faults += [
        f"{name} is {shards.stored[name].dtype}, where the model has {place.dtype}"
        for name, place in wanted.items()
        if name in shards.stored and shards.stored[name].dtype.is_floating_point != place.is_floating_point()
    ]
    faults += [f"missing {name}" for name in sorted(wanted.keys() - shards.stored.keys())]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise CheckpointError(f"{shards.folder}: the weights do not match config.json: {shown}")
    if left:
        log.warning("%s: loaded without %d tensors of a part not known here: %s", shards.folder, len(left), left[0])
