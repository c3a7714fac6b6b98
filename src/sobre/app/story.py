"""The story: a budget becomes a reasoning model. Read it from top to bottom.

    look at the machine, train the tokenizer (or load a model with its own), plan, make the corpus
    pretrain, fine-tune on worked examples (the cold start), reinforce, and what else the recipe's stages are
    (app/lessons.py); examine after each
    write the report

Every part is done once; `Session.done` lets a resumed run skip what is there.
"""

from functools import partial

import torch

from sobre.app import adapting
from sobre.app.examine import examine
from sobre.app.layout import check_stages
from sobre.app.lessons import Bench, lesson
from sobre.app.prepare import look, make_corpus, make_model, make_plan, make_tokenizer
from sobre.app.problems import open_problems
from sobre.app.session import Session
from sobre.app.training import train
from sobre.app.works import student_config
from sobre.config.recipe import NOTHING, StageName
from sobre.data.corpus import Corpus
from sobre.models.adapt import sharing_copy
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.plan.plan import Machine, Plan
from sobre.report.build import build
from sobre.report.card import model_card
from sobre.runtime.files import ensure_space
from sobre.runtime.seed import key_u64
from sobre.tokenizer.classes import token_classes
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.divide import divide

START = "start"
"""What the model is called that a run begins with."""
SAMPLING = ("rl", "rl2", "distill")
"""Stages whose model answers while it is trained."""
BYTES_PER_PARAMETER = 12
"""Of a saved state: weights and two moments in float32."""
BYTES_PER_TABLE_NUMBER = 4
"""The same of the memory's tables, which have one moment for each row."""


def tell(session: Session, until: str = "report") -> None:
    """Run every part that is not done, and finish the folder; `until` "tokenizer" or "data", stop after that."""
    layout = session.recipe.parallel
    to_do = [stage for stage in session.recipe.stages if f"train:{stage}" not in session.done]
    check_stages(session.recipe, to_do, session.processes.count)
    open_problems(session)
    with session.part("start"):
        machine = look(session)
        tokenizer = make_tokenizer(session)
        model = make_model(session, machine, tokenizer)
        given = None if model is None else model.cfg
        plan = make_plan(session, machine, tokenizer, model=given)
    layout.check_model(plan.model)
    if until == "tokenizer":
        return
    corpus = None
    if "pretrain" in session.recipe.stages:
        with session.part("data"):
            corpus = make_corpus(session, plan, tokenizer)
            if session.recipe.data.paths:
                plan = make_plan(session, machine, tokenizer, model=given, corpus=corpus)
    session.console.say(plan.table())
    if until == "data":
        return
    model = model or _new(session, plan.model, machine, tokenizer, "weights")
    model.to(session.device)
    _ensure_space(session, model)
    judge = partial(_judge, session, plan, tokenizer, corpus)
    evaluation = judge(START, model) or None if given is not None else None
    for stage in session.recipe.stages:
        if f"train:{stage}" in session.done:
            model = _student(session, plan, machine, tokenizer, stage) or model
            adapting.take_up(model, session.folder.model(stage))
        else:
            model = _begin(session, plan, machine, tokenizer, stage, model)
            sampler = sharing_copy(model) if stage in SAMPLING and layout.is_divided else model
            division = divide(model, layout, session.processes)
            fetch = None if sampler is model or division is None else partial(division.copy_into, sampler, model)
            allowance = partial(_allowance, session, plan, stage, evaluation)
            bench = Bench(session, plan, corpus, tokenizer, model, stage, allowance, sampler, fetch)
            model = train(session, stage, model, division, tokenizer, lesson(bench))
        evaluation = judge(stage, model) or evaluation
    session.processes.decide(lambda: _finish(session))


def _ensure_space(session: Session, model: Decoder) -> None:
    """What is learned goes to disk with every state, and with the model of every stage."""
    states = session.recipe.save.keep + 1  # the newest is written before the oldest goes
    tables = model.cfg.memory.n_table_numbers if model.lora is None else 0
    each = (adapting.count(model) - tables) * BYTES_PER_PARAMETER + tables * BYTES_PER_TABLE_NUMBER
    each *= states + 1
    merged = sum(p.nbytes for p in model.parameters()) if session.recipe.lora.merged and model.lora else 0
    need_bytes = (each + merged) * len(session.recipe.stages)
    ensure_space(session.folder.path, need_bytes, "the saved states and models of this run")


def _begin(
    session: Session, plan: Plan, machine: Machine, tokenizer: Tokenizer, stage: StageName, before: Decoder
) -> Decoder:
    """The model that a stage goes on from: that of the stage before, of the one that the recipe names, or a student."""
    student = _student(session, plan, machine, tokenizer, stage)
    if student is not None:
        return student
    if named := session.recipe.begins_with(stage):
        adapting.take_up(before, session.folder.model(named))
    return before


def _student(session: Session, plan: Plan, machine: Machine, tokenizer: Tokenizer, stage: StageName) -> Decoder | None:
    """The new model of a stage that begins with nothing."""
    if session.recipe.begins_with(stage) != NOTHING:
        return None
    return _new(session, student_config(session.recipe, plan.model), machine, tokenizer, f"weights/{stage}")


def _new(session: Session, cfg: ModelConfig, machine: Machine, tokenizer: Tokenizer, key: str) -> Decoder:
    model = Decoder(cfg, dtype=getattr(torch, machine.dtype))
    model.init_weights(key_u64(session.recipe.seed, key) % 2**63)
    if model.memory is not None:
        model.memory.classes_V.copy_(torch.tensor(token_classes(tokenizer, cfg.vocab_size)))
    return model.to(session.device)


def _allowance(session: Session, plan: Plan, stage: str, evaluation: float | None) -> float:
    return plan.allowance(stage, session.meter.used(), last_evaluation=evaluation)


def _judge(
    session: Session, plan: Plan, tokenizer: Tokenizer, corpus: Corpus | None, stage: str, model: Decoder
) -> float:
    """Examine the model after a stage, or the one that the run begins with; return what it took of the budget."""
    n_problems = plan.stages[0].eval_problems if stage == START else plan.stage(stage).eval_problems
    return session.processes.decide(partial(examine, session, stage, model, tokenizer, corpus, n_problems=n_problems))


def _finish(session: Session) -> None:
    with session.part("report"):
        build(session.folder.path)
    build(session.folder.path)  # once more, so that the bill holds what the report itself took
    for stage in session.recipe.stages:
        (session.folder.model(stage) / "README.md").write_text(model_card(session.folder.path, stage), encoding="utf-8")
    session.folder.finish()
