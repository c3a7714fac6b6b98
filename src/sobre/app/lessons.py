"""What each stage trains on: its source of batches, its loss, and how far it goes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sobre.app.answers import answered_examples
from sobre.app.grader import ModelGrader
from sobre.app.layout import with_work_for_all
from sobre.app.prepare import chat_len, make_examples
from sobre.app.problems import training_problem
from sobre.app.records import keep_records
from sobre.app.references import References
from sobre.app.room import settle
from sobre.app.sampling import engine_for, samplers_for
from sobre.app.session import Session
from sobre.app.teacher import open_model
from sobre.app.training import Job, n_trained, nothing
from sobre.config.recipe import StageName
from sobre.data.chats import ChatLoader
from sobre.data.corpus import Corpus
from sobre.data.events import Events
from sobre.data.loader import PackedLoader
from sobre.data.pairs import TokenPair, read_pairs, tokenize_pairs
from sobre.data.problems import training_levels
from sobre.data.rubrics import read_rubrics
from sobre.distill.on_policy import StudentSource, check_same_tokens
from sobre.engine.engine import Engine
from sobre.errors import ConfigError, DataError
from sobre.eval.score import prompt_ids
from sobre.models.adapt import sharing_copy
from sobre.models.decoder import Decoder
from sobre.plan.count import forward_flops
from sobre.plan.plan import Plan
from sobre.preference.dpo import preference_loss
from sobre.preference.source import LogProbs, PairSource, reference_log_probs
from sobre.rl.config import RLConfig
from sobre.rl.remote_engine import RemoteEngine
from sobre.rl.shared_engine import SharedEngine
from sobre.rl.source import RolloutSource
from sobre.runtime.files import write_json
from sobre.runtime.seed import key_u64
from sobre.tasks.base import Problem
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.batch import Batch
from sobre.train.config import FineTuneConfig, StageConfig
from sobre.train.loop import Source
from sobre.train.losses import LossFn, next_token
from sobre.train.sources import RowSource, SampleSource


@dataclass(frozen=True)
class Bench:
    """Where a stage works: what the run has decided so far, and the model at hand."""

    session: Session
    plan: Plan
    corpus: Corpus | None
    tokenizer: Tokenizer
    model: Decoder
    stage: StageName
    allowance: Callable[[], float]
    """What the stage may use of the budget from now on."""
    sampler: Decoder
    """What answers: the model, or a whole one that gets its weights by `fetch`."""
    fetch: Callable[[], None] | None

    @property
    def seed(self) -> int:
        return key_u64(self.session.recipe.seed, self.stage) % 2**63

    @property
    def steps(self) -> int:
        return self.plan.stage(self.stage).steps

    @property
    def sharers(self) -> int:
        """Processes that share the sequences of a micro-batch."""
        return self.session.recipe.parallel.sharers_of(self.session.processes.count)

    def say(self, text: str) -> None:
        self.session.console.say(text)

    def budget(self, fixed_steps: int) -> float | None:
        """None where the recipe fixes the steps."""
        return None if fixed_steps else self.allowance()


def lesson(bench: Bench) -> Job:
    """What the stage trains on."""
    recipe = bench.session.recipe
    match bench.stage:
        case "pretrain":
            assert bench.corpus is not None, "whatever pretrains has read its text"
            loader = PackedLoader(bench.corpus.shards, recipe.data.seq_len, bench.seed)
            cfg = with_work_for_all("pretrain", recipe.pretrain, loader.seq_len, bench.sharers, bench.say)
            job = _supervised(bench, RowSource(loader, cfg), cfg, longest=loader.seq_len)
            return replace(job, compiles=recipe.pretrain.compile)
        case "sft":
            return _fine_tuned(bench, recipe.sft)
        case "sft2":
            return _fine_tuned(bench, recipe.sft2)
        case "rl":
            return _reinforced(bench, recipe.rl)
        case "rl2":
            return _reinforced(bench, recipe.rl2)
        case "dpo":
            return _preferred(bench)
        case "distill":
            return _fine_tuned(bench, recipe.distill) if recipe.distill.method == "text" else _distilled(bench)


def _supervised(bench: Bench, source: Source, cfg: StageConfig, *, longest: int) -> Job:
    mtp_weight = cfg.mtp_weight if bench.model.lora is None else 0.0  # a frozen module has nothing to learn
    recompute, _ = settle(bench.session, bench.stage, bench.model, cfg, longest=longest)
    return _job(
        bench,
        cfg,
        source,
        next_token,
        recompute=recompute,
        mtp_weight=mtp_weight,
        rebalance=True,
        rehearse=True,
        precision=cfg.precision,
    )


def _job(
    bench: Bench, cfg: StageConfig | RLConfig, source: Source, loss_fn: LossFn, *, recompute: bool, **more: Any
) -> Job:
    """What every kind of stage says of itself; the router biases stay as they are unless `more` says otherwise."""
    common: dict[str, Any] = {
        "budget": bench.budget(cfg.steps),
        "steps": cfg.steps or bench.steps,
        "lr_scale": cfg.lr_scale,
        "clip": cfg.clip,
        "rebalance": False,
        "recompute": recompute,
    }
    return Job(source=source, loss_fn=loss_fn, **{**common, **more})


def _fine_tuned(bench: Bench, cfg: FineTuneConfig) -> Job:
    session, max_len = bench.session, bench.model.cfg.max_len
    if cfg.answers.teacher:
        allowance = bench.allowance()
        samples = answered_examples(session, bench.stage, cfg, bench.tokenizer, max_len=max_len, allowance=allowance)
    else:
        samples = make_examples(session, bench.stage, cfg, bench.tokenizer, max_len)
    cfg = with_work_for_all(bench.stage, cfg, samples.longest, bench.sharers, bench.say)
    source = SampleSource(ChatLoader(samples, bench.seed), cfg)
    return _supervised(bench, source, cfg, longest=samples.longest)


def _reinforced(bench: Bench, cfg: RLConfig) -> Job:
    session, model = bench.session, bench.model
    reference = sharing_copy(bench.sampler).eval() if cfg.algorithm.kl else None
    is_open = bool(cfg.tools or cfg.general.files)  # a call's result, or a question, may have any length
    asked = chat_len(session.recipe, bench.tokenizer, session.sets)
    longest = model.cfg.max_len if is_open else min(asked, model.cfg.max_len)
    routes = model.cfg.ffn.kind == "moe"
    keeps = {"return_routes": routes, "return_kept": cfg.is_filtered}
    engine: SharedEngine | RemoteEngine
    own: Engine | None = None
    if cfg.samplers.are_apart:
        engine = samplers_for(session, bench.stage, bench.sampler, cfg.samplers, fetch=bench.fetch, **keeps)
    else:
        own = engine_for(session, bench.sampler, longest=longest, **keeps)
        engine = SharedEngine(own, session.processes, fetch=bench.fetch)
    beside = [one for one in (reference, None if bench.sampler is model else bench.sampler) if one is not None]
    recompute, rests = settle(session, bench.stage, model, cfg, longest=longest, engine=own, beside=beside)
    source = RolloutSource(
        engine=engine,
        model=bench.sampler,
        tokenizer=bench.tokenizer,
        cfg=cfg,
        tasks=session.recipe.tasks,
        seed=bench.seed,
        forward_flops=lambda batch: _reading(model, batch),
        reference=reference,
        references=References(session.folder.state / bench.stage, session.processes),
        sets=training_levels(session.sets),
        general=_general(bench, cfg),
        grader=ModelGrader(session, cfg.general) if cfg.general.files else None,
        gather=session.processes.gather,
        rests=rests,
    )
    close = engine.close if isinstance(engine, RemoteEngine) else nothing
    more: dict[str, Any] = {"rebalance": cfg.rebalance, "offloads": rests, "close": close}
    return _job(bench, cfg, source, source.loss_fn, recompute=recompute, **more)


def _general(bench: Bench, cfg: RLConfig) -> list[Problem]:
    """The questions that a judge grades, all of a length that the model can read and answer."""
    if not cfg.general.files:
        return []
    recipe, most = bench.session.recipe, bench.model.cfg.max_len
    events = Events(recipe.data.on_bad_record)
    found = list(read_rubrics(cfg.general.files, recipe.data, events))
    if not found:
        raise DataError(f"{bench.stage}.general.files={list(cfg.general.files)} hold no question")
    need = max(len(prompt_ids(bench.tokenizer, problem)) for problem in found) + cfg.max_tokens
    if need > most:
        raise ConfigError(f"the longest general question and its answer need {need:,} tokens; the model reads {most:,}")
    keep_records(bench.session, bench.stage, events)
    return found


def _distilled(bench: Bench) -> Job:
    session, cfg = bench.session, bench.session.recipe.distill
    teacher, theirs = open_model(session, cfg.answers.teacher, bench.model.dtype)
    check_same_tokens(theirs, bench.tokenizer)

    def draw(step: int, n: int) -> list[Problem]:
        return [training_problem(session, f"distill/{bench.seed}", step * n + i) for i in range(n)]

    longest = min(chat_len(session.recipe, bench.tokenizer, session.sets), bench.model.cfg.max_len)
    own = engine_for(session, bench.sampler, longest=longest)
    beside = [teacher] if bench.sampler is bench.model else [teacher, bench.sampler]
    recompute, _ = settle(session, bench.stage, bench.model, cfg, longest=longest, engine=own, beside=beside)
    source = StudentSource(
        engine=SharedEngine(own, session.processes, fetch=bench.fetch),
        model=bench.model,
        teacher=teacher,
        tokenizer=bench.tokenizer,
        cfg=cfg,
        draw=draw,
        teacher_flops=lambda batch: _reading(teacher, batch),
        judge_s=session.recipe.tasks.judge_s,
    )
    return _job(bench, cfg, source, source.loss_fn, recompute=recompute)


def _preferred(bench: Bench) -> Job:
    session, cfg = bench.session, bench.session.recipe.dpo
    events = Events(session.recipe.data.on_bad_record)
    found = read_pairs(cfg.paths, session.recipe.data, events)
    pairs = tokenize_pairs(found, bench.tokenizer, max_len=bench.model.cfg.max_len, events=events)
    keep_records(session, bench.stage, events)
    source = PairSource(pairs, _references(bench, pairs), cfg, seed=bench.seed)
    recompute, _ = settle(session, "dpo", bench.model, cfg, longest=max(pair.n_tokens for pair in pairs))
    return _job(bench, cfg, source, preference_loss(cfg), recompute=recompute, precision=cfg.precision)


def _references(bench: Bench, pairs: list[TokenPair]) -> list[LogProbs]:
    """What the model that the stage goes on from says of every answer: computed once, kept in state/."""
    session, path = bench.session, bench.session.folder.state / "dpo-reference.json"
    if "reference:dpo" not in session.done:
        with session.part("reference:dpo") as spending:
            seen: list[Batch] = []
            said = reference_log_probs(bench.model, pairs, session.recipe.dpo.micro_tokens, seen.append)
            flops = sum(_reading(bench.model, batch) for batch in seen)
            spending.add(tokens=sum(batch.n_tokens for batch in seen), flops=flops)
            session.meter.add_flops(flops)
            write_json(path, {"schema": 1, "log_probs": said})
    return [(chosen, rejected) for chosen, rejected in json.loads(path.read_text())["log_probs"]]


def _reading(model: Decoder, batch: Batch) -> float:
    """Model FLOPs of a forward pass."""
    return forward_flops(model.cfg, batch.step.lengths, n_logits=n_trained(batch))
