"""The model folder of a divided model, without the whole model in any one place.

Experts are written by the processes that hold them. Any other tensor is put together in every process, one after the
other, and written by one of them in turn. Each process fills files of its own, of FILE_BYTES at most (a larger tensor
is a file), and the first one numbers them and writes the index.

Torch's `HuggingFaceStorageWriter` writes parts of tensors, which one more pass reads back and puts together, in the
shapes that it is given: stacked experts, a tensor each in these files, would have to be taken apart before.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sobre.models.checkpoint import as_theirs, family_for, saved_dtype, their_names, write_config
from sobre.models.decoder import Decoder
from sobre.models.families.base import Family
from sobre.parallel.division import Division
from sobre.runtime.files import write_json
from sobre.runtime.processes import Processes

FILE_BYTES = 4 << 30
"""Largest file, and what a process keeps before it writes."""


def save_divided(
    model: Decoder,
    division: Division,
    processes: Processes,
    folder: Path,
    *,
    extra: Mapping[str, Any],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write config.json, the files and their index. Every process calls it; the folder is one that all of them see."""
    family, dtype = family_for(model), next(model.parameters()).dtype
    processes.decide(lambda: folder.mkdir(parents=True, exist_ok=True))
    mine: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        if held:
            save_file(held, folder / _draft(processes.rank, len(mine)), metadata={"format": "pt"})
            mine.append({name: tensor.nbytes for name, tensor in held.items()})
            held.clear()

    for name, tensor in _my_tensors(model, family, division):
        tensor = tensor.to(saved_dtype(name, tensor, dtype)).contiguous()
        if sum(other.nbytes for other in held.values()) + tensor.nbytes > file_bytes:
            write()
        held[name] = tensor
    write()
    written = processes.gather(mine)
    processes.decide(lambda: _number(folder, written))
    processes.decide(lambda: write_config(model.cfg, family, folder, dtype, extra))


def _my_tensors(model: Decoder, family: Family, division: Division) -> Iterator[tuple[str, Tensor]]:
    """(their name, numbers) of what this process writes; all processes of a stage go through its tensors in one
    order."""
    places = model.state_dict()
    twins = _twins(model, family)
    turn, index = 0, division.stage_rank
    for ours, theirs, form in their_names(model.cfg, family):
        if ours not in places or not division.is_mine(ours):
            continue
        part = division.parts.get(ours)
        if part is not None and form == "stack":
            yield from _my_experts(part.first_row, part.here, theirs) if part.is_first_copy else ()
            continue
        whole = places[ours] if part is None else division.whole(ours, part.here)
        if turn % division.stage_size == index:
            yield from zip(theirs, as_theirs(whole, form), strict=True)
            yield from ((name, whole.clone()) for name in twins.get(ours, ()))
        turn += 1


def _twins(model: Decoder, family: Family) -> dict[str, list[str]]:
    """Names under which the format repeats one of our tensors: the MTP module's embedding and head."""
    found: dict[str, list[str]] = {}
    for theirs, ours in family.copies if model.cfg.n_mtp else ():
        name = "embed.weight" if model.cfg.tied else ours
        found.setdefault(name, []).append(theirs.replace("{m}", str(model.cfg.n_layers)))
    return found


def _my_experts(first: int, stack: Tensor, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    yield from zip(names[first : first + len(stack)], stack.unbind(), strict=True)


def _number(folder: Path, written: list[list[dict[str, int]]]) -> None:
    """Give the drafts their final names and write the index."""
    drafts = [(_draft(rank, place), sizes) for rank, files in enumerate(written) for place, sizes in enumerate(files)]
    where: dict[str, str] = {}
    for number, (draft, sizes) in enumerate(drafts, 1):
        name = f"model-{number:05d}-of-{len(drafts):05d}.safetensors"
        (folder / draft).rename(folder / name)
        where |= dict.fromkeys(sizes, name)
    total = sum(size for _, sizes in drafts for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def _draft(rank: int, place: int) -> str:
    return f"part-{rank}-{place}.safetensors"
