"""Who teaches: an earlier stage of the run, a model's folder or Hub id, or a service behind a URL."""

import os
from pathlib import Path

import torch

from sobre.app.sampling import engine_for
from sobre.app.session import Session
from sobre.config.recipe import STAGES
from sobre.engine.engine import Engine
from sobre.errors import ConfigError
from sobre.eval.answer import Answerer, Local
from sobre.eval.service import Endpoint
from sobre.models.checkpoint import load_adapted, load_model, model_config
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.hub import resolve
from sobre.models.peft import is_adapter
from sobre.tokenizer.tokenizer import Tokenizer


def is_service(teacher: str) -> bool:
    """Whether a teacher is asked through a URL."""
    return "://" in teacher


def teacher_folder(session: Session, teacher: str) -> Path:
    """Where the model of a teacher lies that is no service."""
    return session.folder.model(teacher) if teacher in STAGES else resolve(teacher)


def teacher_config(session: Session, teacher: str) -> ModelConfig | None:
    """The teacher's sizes, for the plan; None for nobody, a service, a stage and an adapter (the run's sizes)."""
    if not teacher or is_service(teacher) or teacher in STAGES or is_adapter(resolve(teacher)):
        return None
    return model_config(teacher)


def open_model(session: Session, teacher: str, dtype: torch.dtype) -> tuple[Decoder, Tokenizer]:
    """The teacher's model, not to be trained, and its tokenizer."""
    folder = teacher_folder(session, teacher)
    load = load_adapted if is_adapter(folder) else load_model
    model = load(folder, dtype=torch.float32, compute_dtype=dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(model.cfg.vocab_size, teacher)
    return model.to(session.device).eval(), tokenizer


def open_answerer(session: Session, who: str, model_name: str, key_env: str) -> tuple[Answerer, Engine | None]:
    """Whoever answers, and the engine whose FLOPs are in the bill (those of a service are not ours)."""
    if is_service(who):
        if key_env and key_env not in os.environ:
            raise ConfigError(f"key_env={key_env}, for {who}: there is no such environment variable")
        return Endpoint(who, model_name, os.environ[key_env] if key_env else ""), None
    model, tokenizer = open_model(session, who, torch.float32)
    engine = engine_for(session, model)
    return Local(engine, tokenizer), engine
