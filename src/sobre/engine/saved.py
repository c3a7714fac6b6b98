"""The prefix cache on disk: what was computed before a restart is found after it.

One safetensors file: the digest of every block that can be found (blocks.py; it covers the tokens, all tokens before
them and whose they are, and tells none of them), least recently used first, and what the cache keeps of each block. It
is bound to the weights and to everything else that shaped the numbers, checksummed, and written whole or not at all. A
file that does not fit is refused; nothing of it is used. What only such a file needs is imported where it is needed:
an engine without one runs on torch alone.

Shapes: B blocks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sobre.errors import EngineError
from sobre.models.decoder import Decoder
from sobre.runtime.files import write_bytes

FORMAT = "sobre prefixes 1"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Prefixes:
    """Blocks that can be found, and what is kept of each."""

    digests: list[bytes]
    kept_B: list[Tensor]


def identity(model: Decoder) -> str:
    """A digest of the model's configuration and all its weights."""
    from sobre.config.load import to_dict

    found = blake2b(json.dumps(to_dict(model.cfg), sort_keys=True).encode(), digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def write(path: Path, prefixes: Prefixes, bound_to: Mapping[str, Any]) -> None:
    """Replace the file; readable by its owner alone, for it holds what was computed of people's texts."""
    from safetensors.torch import save

    rows = [list(one) for one in prefixes.digests]
    digests = torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), DIGEST_BYTES)
    tensors = {"digests": digests} | {f"kept.{i}": kept_B.contiguous() for i, kept_B in enumerate(prefixes.kept_B)}
    about = {"format": FORMAT, "bound_to": json.dumps(bound_to, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, about | {"sum": _sum(tensors, about)}), private=True)


def read(path: Path, bound_to: Mapping[str, Any]) -> Prefixes:
    """The prefixes of the file, if it is whole and bound to the same; else EngineError says what is not."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path} cannot be read as prefixes: {error}") from None
    if about.get("format") != FORMAT:
        raise EngineError(f"{path} is no file of prefixes of this version ({FORMAT})")
    wanted = about.pop("sum", "")
    if _sum(tensors, about) != wanted:
        raise EngineError(f"{path} is damaged: its checksum is another")
    theirs = json.loads(about["bound_to"])
    wrong = [name for name in sorted({*bound_to, *theirs}) if bound_to.get(name) != theirs.get(name)]
    if wrong:
        raise EngineError(f"{path} belongs to something else: it has another {', '.join(wrong)}")
    digests = [bytes(row) for row in tensors["digests"].tolist()]
    return Prefixes(digests, [tensors[f"kept.{i}"] for i in range(len(tensors) - 1)])


def _sum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    found = blake2b(json.dumps(dict(about), sort_keys=True).encode(), digest_size=32)
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(_bytes(tensors[name]))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
