"""The story: a budget becomes a reasoning model. Read it from top to bottom.

    look at the machine, train the tokenizer (or load a model with its own), plan, make the corpus
    pretrain, fine-tune on worked examples (the cold start), reinforce; examine after each
    write the report

Every part is done once; `Session.done` lets a resumed run skip what is there.
"""

from collections.abc import Callable
from functools import partial

import torch

from sobre.app import adapting
from sobre.app.examine import examine
from sobre.app.prepare import look, make_corpus, make_examples, make_model, make_plan, make_tokenizer
from sobre.app.problems import open_problems
from sobre.app.sampling import engine_for
from sobre.app.session import Session
from sobre.app.training import Job, n_trained, train
from sobre.data.chats import ChatLoader
from sobre.data.corpus import Corpus
from sobre.data.loader import PackedLoader
from sobre.data.problems import training_levels
from sobre.models.adapt import sharing_copy
from sobre.models.decoder import Decoder
from sobre.plan.count import forward_flops
from sobre.plan.plan import Plan
from sobre.report.build import build
from sobre.report.card import model_card
from sobre.rl.shared_engine import SharedEngine
from sobre.rl.source import RolloutSource
from sobre.runtime.files import ensure_space
from sobre.runtime.seed import key_u64
from sobre.tokenizer.classes import token_classes
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.config import StageConfig
from sobre.train.divide import divide, n_experts
from sobre.train.loop import Source
from sobre.train.losses import next_token
from sobre.train.sources import RowSource, SampleSource

START = "start"
"""What the model is called that a run begins with."""
BYTES_PER_PARAMETER = 12
"""Of a saved state: weights and two moments in float32."""


def tell(session: Session) -> None:
    """Run every part that is not done, and finish the folder."""
    layout = session.recipe.parallel
    layout.check(session.processes.count)
    open_problems(session)
    with session.part("start"):
        machine = look(session)
        tokenizer = make_tokenizer(session)
        model = make_model(session, machine, tokenizer)
        given = None if model is None else model.cfg
        plan = make_plan(session, machine, tokenizer, model=given)
    layout.check_experts(n_experts(plan.model))
    corpus = None
    if "pretrain" in session.recipe.stages:
        with session.part("data"):
            corpus = make_corpus(session, plan, tokenizer)
            if session.recipe.data.paths:
                plan = make_plan(session, machine, tokenizer, model=given, data_tokens=corpus.shards.n_tokens)
    session.console.say(plan.table())
    if model is None:
        model = Decoder(plan.model, dtype=getattr(torch, machine.dtype))
        model.init_weights(key_u64(session.recipe.seed, "weights") % 2**63)
        if model.memory is not None:
            model.memory.classes_V.copy_(torch.tensor(token_classes(tokenizer, model.cfg.vocab_size)))
    _ensure_space(session, model)
    judge = partial(_judge, session, plan, tokenizer, corpus)
    evaluation = judge(START, model) or None if given is not None else None
    for stage in session.recipe.stages:
        if f"train:{stage}" in session.done:
            adapting.take_up(model, session.folder.model(stage))
        else:
            used = session.meter.used()
            budget = plan.allowance(stage, used, last_evaluation=evaluation)
            sampler = sharing_copy(model) if stage == "rl" and layout.is_divided else model
            division = divide(model, layout, session.processes)
            fetch = None if sampler is model or division is None else partial(division.copy_into, sampler, model)
            job = _job(session, stage, plan, corpus, tokenizer, model, budget, sampler, fetch)
            model = train(session, stage, model, division, tokenizer, job)
        evaluation = judge(stage, model) or evaluation
    session.processes.decide(lambda: _finish(session))


def _ensure_space(session: Session, model: Decoder) -> None:
    """What is learned goes to disk with every state, and with the model of every stage."""
    states = session.recipe.save.keep + 1  # the newest is written before the oldest goes
    each = adapting.count(model) * BYTES_PER_PARAMETER * (states + 1)
    merged = sum(p.nbytes for p in model.parameters()) if session.recipe.lora.merged and model.lora else 0
    need_bytes = (each + merged) * len(session.recipe.stages)
    ensure_space(session.folder.path, need_bytes, "the saved states and models of this run")


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


def _job(
    session: Session,
    stage: str,
    plan: Plan,
    corpus: Corpus | None,
    tokenizer: Tokenizer,
    model: Decoder,
    budget: float,
    sampler: Decoder,
    fetch: Callable[[], None] | None,
) -> Job:
    """What a stage trains on. `sampler` is the model, or a whole one that gets its weights by `fetch`."""
    recipe = session.recipe
    seed = key_u64(recipe.seed, stage) % 2**63
    match stage:
        case "pretrain":
            assert corpus is not None, "whatever pretrains has read its text"
            source: Source = RowSource(PackedLoader(corpus.shards, recipe.data.seq_len, seed), recipe.pretrain)
            return _supervised(source, recipe.pretrain, plan.stage(stage).steps, budget, recipe.pretrain.mtp_weight)
        case "sft":
            samples = make_examples(session, tokenizer, model.cfg.max_len)
            source = SampleSource(ChatLoader(samples, seed), recipe.sft)
            weight = recipe.sft.mtp_weight if model.lora is None else 0.0  # a frozen module has nothing to learn
            return _supervised(source, recipe.sft, plan.stage(stage).steps, budget, weight)
        case _:
            return _reinforced(session, plan, tokenizer, model, budget, seed, sampler, fetch)


def _supervised(source: Source, cfg: StageConfig, guess: int, budget: float, mtp_weight: float) -> Job:
    return Job(
        source=source,
        loss_fn=next_token,
        budget=None if cfg.steps else budget,
        steps=cfg.steps or guess,
        lr_scale=cfg.lr_scale,
        clip=cfg.clip,
        mtp_weight=mtp_weight,
        precision=cfg.precision,
    )


def _reinforced(
    session: Session,
    plan: Plan,
    tokenizer: Tokenizer,
    model: Decoder,
    budget: float,
    seed: int,
    sampler: Decoder,
    fetch: Callable[[], None] | None,
) -> Job:
    cfg = session.recipe.rl
    reference = sharing_copy(sampler).eval() if cfg.algorithm.kl else None
    engine = engine_for(session, sampler, return_routes=model.cfg.ffn.kind == "moe")
    source = RolloutSource(
        engine=SharedEngine(engine, session.processes, fetch=fetch),
        model=model,
        tokenizer=tokenizer,
        cfg=cfg,
        tasks=session.recipe.tasks,
        seed=seed,
        forward_flops=lambda batch: forward_flops(model.cfg, batch.step.lengths, n_logits=n_trained(batch)),
        reference=reference,
        sets=training_levels(session.sets),
        gather=session.processes.gather,
    )
    return Job(
        source=source,
        loss_fn=source.loss_fn,
        budget=None if cfg.steps else budget,
        steps=cfg.steps or plan.stage("rl").steps,
        lr_scale=cfg.lr_scale,
        clip=cfg.clip,
        rebalance=False,
    )
