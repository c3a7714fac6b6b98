"""The examination after a stage: problems of the fixed test mix, and held-out text. Written to eval/STAGE.json."""

from collections.abc import Sequence
from typing import Any

from sobre.app.sampling import engine_for
from sobre.app.session import Session, Spending
from sobre.data.corpus import Corpus
from sobre.data.problems import held_out
from sobre.data.sources import Document
from sobre.eval.baselines import baselines
from sobre.eval.bits import bits_per_byte, first_of_each
from sobre.eval.config import EvalConfig
from sobre.eval.score import evaluate, prompt_ids
from sobre.models.decoder import Decoder
from sobre.plan.count import forward_flops
from sobre.runtime.files import write_json
from sobre.tasks.base import Problem
from sobre.tokenizer.tokenizer import Tokenizer


def examine(
    session: Session, stage: str, model: Decoder, tokenizer: Tokenizer, corpus: Corpus | None, *, n_problems: int
) -> float:
    """Examine the model of a stage; return what the next examination is likely to take of the budget: as much, without
    the text, which is read once (0 when it was done before)."""
    if f"eval:{stage}" in session.done:
        return 0.0
    recipe, before = session.recipe, session.meter.used()
    model.eval()
    with session.part(f"eval:{stage}") as spending:
        result: dict[str, Any] = {"schema": 1}
        if recipe.has_tasks:
            problems = held_out(min(n_problems, recipe.eval.n_problems), recipe.tasks, session.sets)
            result |= _answers(session, stage, model, tokenizer, problems, spending)
        answered = spending.flops
        session.meter.add_flops(answered)
        again = session.meter.used() - before
        if stage == "pretrain" and corpus is not None:
            result |= _text(session, model, tokenizer, corpus, spending)
        session.meter.add_flops(spending.flops - answered)
        (session.folder.path / "eval").mkdir(exist_ok=True)
        write_json(session.folder.path / "eval" / f"{stage}.json", result)
    return again


def held_out_text(corpus: Corpus, cfg: EvalConfig) -> list[Document]:
    """The held-out documents that are scored."""
    documents = [Document(text, source) for source, texts in sorted(corpus.held_out.items()) for text in texts]
    return first_of_each(documents, cfg.bits_documents)


def _answers(
    session: Session,
    stage: str,
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    spending: Spending,
) -> dict[str, Any]:
    recipe = session.recipe
    longest = max(len(prompt_ids(tokenizer, problem)) for problem in problems) + recipe.eval.max_new_tokens
    engine = engine_for(session, model, longest=longest, as_saved=True)
    result = evaluate(engine, tokenizer, problems, recipe.eval, seed=recipe.seed, judge_s=recipe.tasks.judge_s)
    spending.add(tokens=engine.stats.generated_tokens, flops=engine.stats.flops)
    right = result.overall
    session.console.say(
        f"{stage}: {right.value:.1%} of {right.n:,} test problems right ({right.ci_low:.1%} to {right.ci_high:.1%})"
        + (f"; {result.unjudged:,} answers could not be judged" if result.unjudged else "")
    )
    return result.to_dict()


def _text(session: Session, model: Decoder, tokenizer: Tokenizer, corpus: Corpus, spending: Spending) -> dict[str, Any]:
    cfg = session.recipe.eval
    scored = held_out_text(corpus, cfg)  # model and baselines are scored on the same text
    if not scored:
        return {}
    window = cfg.bits_window or session.recipe.data.seq_len
    scores = bits_per_byte(model, tokenizer, scored, window=window, overlap=cfg.bits_overlap)
    total = scores["all"]
    spending.add(tokens=total.n_tokens, flops=forward_flops(model.cfg, [window]) / window * total.n_read)
    session.console.say(f"held-out text: {total.per_byte:.3f} bits per byte over {total.n_bytes:,} bytes")
    result: dict[str, Any] = {"bits_per_byte": {source: bits.to_dict() for source, bits in scores.items()}}
    if cfg.ngram_order:
        result["baselines"] = baselines(corpus, tokenizer, scored, cfg.ngram_order)
    return result
