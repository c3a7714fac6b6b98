"""The beginning of a run: look at the machine, train the tokenizer, plan, and make the corpus.

Text comes from the files that the recipe names; without any it is generated, as much as the plan will read. What was
measured and decided here is kept (state/calibration.json), so that a resumed run plans the same.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from sobre.app.adapting import load_start
from sobre.app.examine import held_out_text
from sobre.app.records import exam_prompts, keep_records
from sobre.app.session import Session
from sobre.app.teacher import is_service, teacher_config, teacher_folder
from sobre.app.works import step_tokens, works
from sobre.config.recipe import Recipe
from sobre.data.chats import ChatCounts, ChatSamples, tokenize_chats
from sobre.data.corpus import Corpus, prepare, training_texts
from sobre.data.events import Events
from sobre.data.problems import ProblemSet
from sobre.data.sources import Chat, Document, read_chats, read_documents
from sobre.distill.config import DistillConfig
from sobre.errors import ConfigError
from sobre.eval.bits import tokens_read
from sobre.eval.score import prompt_ids
from sobre.kernels.precision import choose_matmul_precision
from sobre.ledger.config import PriceConfig
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.hub import resolve
from sobre.plan.plan import Machine, Plan
from sobre.plan.solve import solve
from sobre.rl.config import RLConfig
from sobre.runtime.device import Calibration, calibrate, choose_threads, memory_of, pick_device
from sobre.runtime.environment import environment
from sobre.runtime.files import write_json
from sobre.tasks.sampling import chat, test_set
from sobre.tasks.text import documents, small_talk
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.config import FineTuneConfig

TOKENIZER_DOCUMENTS = 6000
"""Generated documents, and as many worked examples, that the tokenizer learns from."""
GENERATED_MARGIN = 1.25
"""Generated text over what the plan will read: the machine may be faster than measured."""
LENGTH_MARGIN = 1.5
"""Longest question or worked example of the whole run over the longest of the 200 looked at."""
N_LONGEST = 200
"""Problems of a file whose tokens are counted, those of the most characters."""


def look(session: Session) -> Machine:
    """Measure the machine, or read what was measured when the run began.

    The plan counts on its typical speed; shares of peak are taken of the best that was seen. A run may go on on
    another device than the one that it began on: the plan stays, and the device is measured for the shares of peak.
    """
    path, processes = session.folder.state / "calibration.json", session.processes
    session.device = device = pick_device(session.recipe.device, processes.rank % processes.per_node)
    if device.index:
        torch.accelerator.set_device_index(device.index)
    if not processes.decide(path.is_file):
        threads = choose_threads()
        found = calibrate(device)  # every process at the same time: they share the machine
        if processes.is_first:
            write_json(session.folder.path / "environment.json", environment(threads))
            write_json(path, found.to_dict())
    stored = processes.decide(lambda: json.loads(path.read_text()))
    torch.set_num_threads(stored["threads"])
    dtype = stored.pop("dtype")
    found = Calibration(**stored)
    session.peak_flops = found.peak(dtype)
    if torch.device(found.device).type != device.type:
        session.console.say(f"resume: on {device}, where the run began on {found.device}; the plan stays as it was")
        session.peak_flops = calibrate(device).peak(dtype)
    if dtype == "float32" and device.type == "cpu":
        choose_matmul_precision()
    return Machine(
        name=found.name,
        dtype=dtype,
        peak_flops=found.flops(dtype),
        memory_bytes=memory_of(str(device)),
        n_devices=processes.count,
    )


def make_tokenizer(session: Session) -> Tokenizer:
    """The tokenizer of the model that the run begins with, of the teacher that a student from nothing begins with, or
    one trained on the run's own text."""
    folder, recipe = session.folder.state / "tokenizer", session.recipe

    def make() -> None:
        if (folder / "tokenizer.json").is_file():
            return
        teacher = recipe.teacher(recipe.stages[0])
        if recipe.start.model:
            Tokenizer.load(resolve(recipe.start.model)).save(folder)
        elif teacher and not is_service(teacher):
            Tokenizer.load(teacher_folder(session, teacher)).save(folder)
        else:
            Tokenizer.train(_tokenizer_texts(recipe, session.sets), recipe.tokenizer).save(folder)

    session.processes.decide(make)
    return Tokenizer.load(folder)


def make_model(session: Session, machine: Machine, tokenizer: Tokenizer) -> Decoder | None:
    """The model that the run begins with; None when it begins from nothing."""
    name, dtype = session.recipe.start.model, getattr(torch, machine.dtype)
    if not name:
        return None
    model = load_start(session.recipe, dtype, session.console)
    tokenizer.check_fits(model.cfg.vocab_size, name)
    return model


def make_plan(
    session: Session,
    machine: Machine,
    tokenizer: Tokenizer,
    *,
    model: ModelConfig | None = None,
    corpus: Corpus | None = None,
) -> Plan:
    """What the budget buys; written to plan.json.

    `model` is the one that the run begins with; `corpus` is the text, where it cannot grow.
    """
    return session.processes.decide(lambda: _plan(session, machine, tokenizer, model, corpus))


def _plan(
    session: Session, machine: Machine, tokenizer: Tokenizer, model: ModelConfig | None, corpus: Corpus | None
) -> Plan:
    recipe, rate = session.recipe, session.price
    own = PriceConfig(usd_per_h=rate.usd_per_h, source=rate.source)  # of all machines together
    recipe = replace(recipe, budget=replace(recipe.budget, price=own))
    if model is not None:
        _check_context(recipe, tokenizer, model, session.sets)
    elif recipe.has_tasks:
        max_len = max(recipe.model.max_len, chat_len(recipe, tokenizer, session.sets))
        recipe = replace(recipe, model=replace(recipe.model, max_len=max_len))
    sizes = model or replace(recipe.model, vocab_size=tokenizer.vocab_size)
    plan = solve(
        recipe,
        machine,
        vocab_size=tokenizer.vocab_size,
        seq_len=recipe.data.seq_len,
        step_tokens=step_tokens(recipe),
        data_tokens=None if corpus is None else corpus.shards.n_tokens,
        held_out_tokens=0 if corpus is None else _held_out_tokens(recipe, corpus, tokenizer),
        n_problems=recipe.eval.n_problems,
        model=model,
        lora=recipe.lora,
        works=works(recipe, sizes, teacher_config(session, recipe.distill.answers.teacher)),
    )
    write_json(session.folder.path / "plan.json", plan.to_dict())
    return plan


def _held_out_tokens(recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> int:
    cfg = recipe.eval
    window = cfg.bits_window or recipe.data.seq_len
    return tokens_read(tokenizer, held_out_text(corpus, cfg), window=window, overlap=cfg.bits_overlap)


def make_corpus(session: Session, plan: Plan, tokenizer: Tokenizer) -> Corpus:
    """The pretraining text in token shards; written to data.json for the report."""
    folder = session.folder.state / "corpus"
    session.processes.decide(lambda: None if folder.is_dir() else _write_corpus(session, plan, tokenizer, folder))
    return Corpus.open(folder)


def _write_corpus(session: Session, plan: Plan, tokenizer: Tokenizer, folder: Path) -> None:
    recipe = session.recipe
    events = Events(recipe.data.on_bad_record)
    if recipe.data.paths:
        found: Iterator[Document] = read_documents(recipe.data.paths, recipe.data, events)
    else:
        fixed = recipe.pretrain.steps * recipe.pretrain.batch_tokens
        found = _generated(recipe, tokenizer, fixed or plan.stage("pretrain").tokens)
    corpus = prepare(found, tokenizer, folder, recipe.data, events=events, test_prompts=exam_prompts(session))
    report = {**corpus.report, "generated": not recipe.data.paths}
    write_json(session.folder.path / "data.json", report)


def make_examples(session: Session, stage: str, cfg: FineTuneConfig, tokenizer: Tokenizer, max_len: int) -> ChatSamples:
    """The chats of a fine-tuning without a teacher: the recipe's files, or worked examples."""
    recipe = session.recipe
    events = Events(recipe.data.on_bad_record)
    if not cfg.paths:
        chats = (
            Chat(chat(recipe.tasks, f"{stage}/{recipe.seed}", index), "generated", where=f"worked example {index}")
            for index in range(cfg.n_examples)
        )
        return tokenize_chats(chats, tokenizer, max_len=max_len, events=events)
    counts = ChatCounts(exam_prompts(session))
    found = counts.keep(read_chats(cfg.paths, recipe.data, events), recipe.data)
    samples = tokenize_chats(found, tokenizer, max_len=max_len, events=events)
    keep_records(session, stage, events, counts)
    return samples


def _check_context(recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig, sets: tuple[ProblemSet, ...]) -> None:
    """A model that is there has the context that it has."""
    length = recipe.data.seq_len if "pretrain" in recipe.stages else 0
    if length > model.max_len:
        raise ConfigError(
            f"data.seq_len needs {length:,} tokens, and {recipe.start.model} reads at most {model.max_len:,}"
        )
    if not recipe.has_tasks:
        return
    need, answer = chat_len(recipe, tokenizer, sets), _answer_len(recipe)
    if need > model.max_len:
        raise ConfigError(
            f"questions and answers of the tasks need {need:,} tokens, {answer:,} of them for an answer, and"
            f" {recipe.start.model} reads at most {model.max_len:,}: shorter answers (max_tokens of the stage,"
            " eval.max_new_tokens) or, of a file, shorter questions (tasks.max_question, in characters) may fit"
        )


def chat_len(recipe: Recipe, tokenizer: Tokenizer, sets: tuple[ProblemSet, ...]) -> int:
    """Context that a question with its longest answer needs, and a worked example, with room for longer ones."""
    asked = test_set(200, recipe.tasks) if recipe.tasks.names else []
    question = int(max((len(prompt_ids(tokenizer, problem)) for problem in asked), default=0) * LENGTH_MARGIN)
    for each in sets:
        longest = sorted((*each.train, *each.test), key=lambda problem: -len(problem.prompt))[:N_LONGEST]
        question = max(question, *(len(prompt_ids(tokenizer, problem)) for problem in longest))
    example = 0
    if recipe.tasks.names:
        chats = (chat(recipe.tasks, f"sft/{recipe.seed}", index) for index in range(200))
        example = int(max(len(tokenizer.render(each)) for each in chats) * LENGTH_MARGIN)
    return max(question + _answer_len(recipe), example)


def _answer_len(recipe: Recipe) -> int:
    return max(recipe.eval.max_new_tokens, *map(partial(_longest_answer, recipe), recipe.stages))


def _longest_answer(recipe: Recipe, stage: str) -> int:
    """Tokens of the longest answer that a stage asks for."""
    match getattr(recipe, stage):
        case DistillConfig(method="on_policy") | RLConfig() as section:
            return section.max_tokens
        case FineTuneConfig(answers=answers) if answers.teacher:
            return answers.max_tokens
    return 0


def _tokenizer_texts(recipe: Recipe, sets: tuple[ProblemSet, ...]) -> Iterator[str]:
    if recipe.data.paths:
        events = Events("count")  # what is wrong with the files is the corpus's to say
        yield from training_texts(read_documents(recipe.data.paths, recipe.data, events), recipe.data)
    else:
        yield from islice(documents(recipe.seed, recipe.text), TOKENIZER_DOCUMENTS)
    for problem in (problem for each in sets for problem in each.train):
        yield problem.prompt
        yield problem.data.get("solution") or problem.answer
    if recipe.has_tasks and recipe.tasks.names:
        for index in range(TOKENIZER_DOCUMENTS):
            yield from (message["content"] for message in chat(recipe.tasks, f"tokenizer/{recipe.seed}", index))


def _generated(recipe: Recipe, tokenizer: Tokenizer, n_tokens: int) -> Iterator[Document]:
    """Generated documents of about `n_tokens`, and a margin."""
    sample = list(islice(documents(recipe.seed, recipe.text), 500))
    per_document = sum(map(len, tokenizer.encode_batch(sample))) / len(sample) + 1
    count = max(2000, int(n_tokens * GENERATED_MARGIN / per_document))
    talks = int(recipe.text.chat_share * count)
    for index, text in enumerate(islice(documents(recipe.seed, recipe.text), count)):
        yield Document(text, "generated", where=f"generated document {index}")
        if index * talks // count != (index + 1) * talks // count:
            messages = small_talk(recipe.seed, index, recipe.text)
            said = "\n".join(message["content"] for message in messages)
            yield Document(said, "generated chat", where=f"generated chat {index}", messages=messages)
