"""From a model to its GGUF file."""

from collections.abc import Callable
from pathlib import Path

from sobre.errors import CheckpointError
from sobre.models.decoder import Decoder
from sobre.models.gguf.file import Entry, Type, write
from sobre.models.gguf.tensors import entries, model_fields
from sobre.models.gguf.vocabulary import vocabulary_fields
from sobre.models.kept import refuse_kept
from sobre.plan.llama_cpp import architecture, faults

FILE_TYPES: dict[Type, int] = {"f32": 0, "f16": 1, "q8_0": 7}
"""general.file_type: what most tensors are."""


def save_gguf(
    model: Decoder,
    tokenizer: Path,
    path: Path,
    *,
    type: Type = "f16",
    name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Entry]:
    """Write the model and the tokenizer of a folder; return what was written.

    Raises CheckpointError that names all that llama.cpp does not have, before anything is written.
    """
    refuse_kept(model, "a GGUF file")
    cfg = model.cfg
    if wrong := faults(cfg):
        raise CheckpointError(f"llama.cpp cannot run this model: {'; '.join(wrong)}")
    kind = architecture(cfg)
    fields = {
        "general.architecture": kind,
        "general.name": name or path.stem,
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": 2,
        **model_fields(cfg, kind),
        **vocabulary_fields(tokenizer, cfg.vocab_size),
    }
    tensors = entries(model, kind, type)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, fields, tensors, progress)
    return tensors
