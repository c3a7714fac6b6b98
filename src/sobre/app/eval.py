"""sobre eval: how good is a model on named tasks, and is it better than another?

    sobre eval out/demo/rl --tasks arithmetic,countdown
    sobre eval ./Qwen3-0.6B --tasks gsm8k,math500 --files ./problems --k 8 --html out/eval.html
    sobre eval out/demo/base --tasks arithmetic --shots 4 --style plain
    sobre eval out/demo/rl --weights int8 --cache int8 --text notes/ --tasks arithmetic
    sobre eval --endpoint http://127.0.0.1:8000/v1 --model small --tasks mine=./mine.jsonl

Generated tasks need no file; well-known sets are looked for under --files; NAME=PATH names a file of your own. Every
reply is kept in the result (--out), so that a second model can be compared with it problem by problem (--against).
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from sobre.config.base import config
from sobre.config.load import load, to_dict
from sobre.data.config import DataConfig
from sobre.errors import ConfigError, DataError
from sobre.eval.config import LimitField, Omittable, Thinking
from sobre.runtime.config import Device
from sobre.runtime.files import write_text
from sobre.serve.config import NO_ROUNDING, Decoding, Dtype, Rounding
from sobre.tasks.config import JUDGE_S
from sobre.tasks.judges import check_judges

if TYPE_CHECKING:
    from sobre.app import rounded
    from sobre.data.sources import Document
    from sobre.eval.answer import Local
    from sobre.eval.kept import Kept
    from sobre.eval.service import Endpoint
    from sobre.tasks.base import Problem

AT_ONCE = 16
"""Requests that the engine answers together."""
BITS_WINDOW = 1024
"""Tokens of context at most when text is scored."""
HOW_READ = {
    "model": "as it is",
    "int8": "with int8 weights",
    "int4": "with int4 weights",
    "int8-cache": "with an int8 cache",
    "int8+int8-cache": "with int8 weights and cache",
    "int4+int8-cache": "with int4 weights and an int8 cache",
}
"""The scores of `bits_per_byte` in the result, and how they are told."""


@config
class EvalOptions(Rounding):
    """Measure a model, or a service, on tasks."""

    folder: tyro.conf.Positional[str] = ""
    """Folder of a model, or its id on the hub; or leave it out and give --endpoint and --model."""
    device: Device = "auto"
    """Where the model runs; auto is the accelerator if there is one, else the CPU."""
    dtype: Dtype = "saved"
    """Of weights and computing; saved keeps that of the files, FP8 blocks multiplied out; fp8 keeps those, too."""
    revision: str = ""
    """Branch, tag or commit of a model on the hub; left out, its main branch."""
    text: tuple[str, ...] = ()
    """Files or folders of text: bits per byte on it, with what is rounded beside that of the model as it is."""
    tasks: str = "arithmetic,countdown,sorting,word,equation,sequence"
    """Tasks, with commas between them: generated ones, well-known sets, NAME=PATH or NAME=hf://OWNER/SET/FILE."""
    files: str = "data"
    """Folder in which the files of well-known sets lie, at any depth; one that is not there comes from the hub."""
    n: int = 0
    """Problems of each task, the first ones; 0 takes all of a file, and 200 of a generated task."""
    k: int = 1
    """Replies to each problem."""
    temperature: float = 0.6
    """0 takes the most probable token, and then k must be 1."""
    top_p: float = 0.95
    max_tokens: int = 0
    """Longest reply, thought included; a longer one is cut and wrong. 0: what the context leaves, up to 1,024."""
    shots: int = 0
    """Worked examples before each question: of generated tasks from the training split, of a file its last problems."""
    style: Literal["chat", "plain"] = "chat"
    """chat asks through the model's template; plain in text (Question: ... Answer:), for a base model of ours."""
    seed: int = 0
    thinking: Thinking = "auto"
    """on, off, or the most tokens of a thought. auto: our models think where they can, a service does as it does."""
    judge_s: float = JUDGE_S
    """Seconds after which a judge that has not answered stops the evaluation."""
    endpoint: str = ""
    """A service, up to and with /v1."""
    model: str = ""
    """The model's name at the service."""
    api: Literal["openai", "anthropic"] = "openai"
    key_env: str = ""
    """Environment variable that holds the key of the service."""
    omit: tuple[Omittable, ...] = ()
    """What the service refuses to be told, and then chooses itself."""
    limit_field: LimitField = "max_tokens"
    """What the service calls the longest reply."""
    extra_body: str = ""
    """More fields of every request to the service, a JSON object: {"reasoning_effort": "low"}."""
    waits: int = 5
    """How often a request that the service puts off (429, 503, 529) is made again, as late as its Retry-After says."""
    against: str = ""
    """The result of another evaluation of the same problems."""
    training_text: tuple[str, ...] = ()
    """Files or folders that the model was trained on, of the kinds that --data takes: searched for the problems."""
    out: str = ""
    """File for the result; every reply stands in it. Those of a service are kept beside it as they come (.partial)."""
    html: str = ""
    """File for a page with the table, and every question and reply to read."""
    json: bool = False
    """Print the result as one JSON document."""

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.endpoint):
            raise ConfigError("give the folder of a model, or --endpoint URL with --model NAME")
        if bool(self.endpoint) != bool(self.model):
            raise ConfigError("--endpoint URL and --model NAME, the model's name there, go together")
        if self.endpoint and (self.text or self.rounding != NO_ROUNDING):
            raise ConfigError("--weights, --cache and --text are for a model of this process; a service has its own")
        if not self.endpoint and (self.omit or self.extra_body or self.limit_field != "max_tokens"):
            raise ConfigError("--omit, --limit-field and --extra-body say how a service is asked: they need --endpoint")
        if self.api == "anthropic" and self.limit_field != "max_tokens":
            raise ConfigError(f"--limit-field={self.limit_field}: Anthropic's messages have max_tokens alone")
        if isinstance(self.thinking, int) and self.thinking < 1:
            raise ConfigError(f"thinking={self.thinking} must be at least 1 token; off is no thought")
        if self.style == "plain" and self.thinking != "auto":
            raise ConfigError(f"thinking={self.thinking} is said in a chat's layout, and --style plain has none")
        if self.waits < 0:
            raise ConfigError(f"waits={self.waits} must be 0 or more")
        if self.shots < 0:
            raise ConfigError(f"shots={self.shots} must be 0 or more")
        if self.style == "plain" and self.endpoint:
            raise ConfigError("--style plain asks a model of this process; a service is asked through its chat")
        if self.n < 0 or self.k < 1 or self.max_tokens < 0:
            raise ConfigError(f"n={self.n} and max_tokens={self.max_tokens} must be 0 or more, k={self.k} 1 or more")
        if not 0 <= self.temperature <= 2 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature={self.temperature} must lie in 0..2, top_p={self.top_p} above 0 and up to 1"
            )
        if not self.judge_s > 0:
            raise ConfigError(f"judge_s={self.judge_s} must lie above 0")
        if self.temperature == 0 and self.k > 1:
            raise ConfigError(f"k={self.k} replies at temperature 0 are all alike; use k=1 or a temperature")


def main(argv: list[str]) -> int:
    """Ask, judge, and tell."""
    options = load(EvalOptions, argv, recipes=None, prog="sobre eval")
    asked_of = {name: _problems(name, path, options) for name, path in _named(options.tasks)}
    against = _read(Path(options.against)) if options.against else None
    check_judges(problem for asked, _ in asked_of.values() for problem in asked)

    from sobre.app import rounded
    from sobre.data.events import Events
    from sobre.data.sources import read_documents, read_texts
    from sobre.eval import measure
    from sobre.eval.answer import Sampling
    from sobre.eval.bits import ALL
    from sobre.eval.shots import turns

    documents = list(read_documents(options.text, DataConfig())) if options.text else []
    if unnamed := [document.where for document in documents if document.source == ALL]:
        raise DataError(f"{unnamed[0]}: its source is {ALL!r}, which means all sources together; name it otherwise")
    contamination = {}
    if options.training_text:
        events = Events()
        texts = read_texts(options.training_text, DataConfig(), events)
        contamination = measure.contamination({name: asked for name, (asked, _) in asked_of.items()}, texts)
        for kind, note in events.notes.items():
            print(f"--training-text: {note.count:,} x {kind}, first {note.first[0]}", file=sys.stderr)
    if against is not None:
        for name, (asked, _) in asked_of.items():
            measure.check_same([problem.key for problem in asked], measure.verdicts(against, name))
    how = Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        thinking=options.thinking,
    )
    shown = {key: value for key, value in to_dict(options).items() if key not in ("json", "key_env")}
    result: dict[str, Any] = {"schema": 1, "options": shown, "tasks": {}, "items": []}
    where = sys.stderr if options.json else sys.stdout
    with _keeping(options) as kept:
        answerer: Local | Endpoint
        plain: Local | None = None
        scores: dict[str, dict[str, Any]] = {}
        decoding: rounded.Speeds = {}
        if options.endpoint:
            answerer = _endpoint(options, kept)
        else:
            answerer, plain, scores, decoding = _local(options, documents)
        if scores:
            result["bits_per_byte"] = scores
            print(_bits(scores), file=where, flush=True)
        if decoding:
            result["decoding"] = decoding
            print(rounded.told(decoding, HOW_READ), file=where, flush=True)
        for name, (asked, examples) in asked_of.items():
            shots = turns(examples, thinks=options.style == "chat")
            items = measure.measure(asked, replace(answerer, shots=shots), options.k, how, judge_s=options.judge_s)
            found = measure.summary(items, seed=options.seed)
            if plain is not None:
                own = measure.measure(asked, replace(plain, shots=shots), options.k, how, judge_s=options.judge_s)
                found["as_it_is"] = {
                    "average_at_k": measure.summary(own, seed=options.seed)["average_at_k"],
                    **measure.compare(items, {item.key: item.verdicts for item in own}, seed=options.seed),
                }
            if against is not None:
                found["against"] = measure.compare(items, measure.verdicts(against, name), seed=options.seed)
            if contamination:
                found["contamination"] = contamination[name]
            result["tasks"][name] = found
            result["items"] += measure.to_dict(items)
            print(_line(name, found), file=where, flush=True)
        if options.out:
            Path(options.out).parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(options.out), json.dumps(result, ensure_ascii=False, indent=1))
    if kept is not None and (n_others := kept.close()):
        print(f"{kept.path} holds {n_others:,} replies to other requests, and stays", file=sys.stderr)
    if options.html:
        from sobre.report.evaluation import render

        Path(options.html).parent.mkdir(parents=True, exist_ok=True)
        Path(options.html).write_text(render(result), encoding="utf-8")
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0


@contextmanager
def _keeping(options: EvalOptions) -> "Iterator[Kept | None]":
    """Where the replies of a service are kept until the result is written; how many there are is said if it is not."""
    if not options.endpoint or not options.out:
        yield None
        return
    from sobre.eval.kept import Kept

    kept = Kept(Path(f"{options.out}.partial"))
    try:
        yield kept
    except BaseException:
        if len(kept):
            print(f"{len(kept):,} replies are kept in {kept.path}: the same command goes on from them", file=sys.stderr)
        raise


def _named(tasks: str) -> list[tuple[str, str]]:
    """`a,b=path` as (name, path or nothing)."""
    parts = [part.strip().partition("=") for part in tasks.split(",") if part.strip()]
    names = [name for name, _, _ in parts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--tasks={tasks!r} must name at least one task, each once")
    return [(name, path) for name, _, path in parts]


def _problems(name: str, path: str, options: EvalOptions) -> "tuple[list[Problem], list[Problem]]":
    """What is asked, and the worked examples before it."""
    from sobre.eval.shots import generated_examples, hold_back
    from sobre.tasks.config import LANGS, TasksConfig
    from sobre.tasks.files import find_file, read_problems
    from sobre.tasks.hub import located
    from sobre.tasks.registry import TASKS
    from sobre.tasks.sampling import test_set

    if name in TASKS and not path:
        asked = test_set(options.n or 200, TasksConfig(names=(name,)))
        return asked, generated_examples(name, options.shots, LANGS)
    found = read_problems(located(path) if path else find_file(name, Path(options.files)), name)
    asked, examples = hold_back(found, options.shots, name)
    return (asked[: options.n] if options.n else asked), examples


def _endpoint(options: EvalOptions, kept: "Kept | None") -> "Endpoint":
    from sobre.eval.service import Endpoint

    if options.key_env and options.key_env not in os.environ:
        raise ConfigError(f"--key-env={options.key_env}: there is no such environment variable")
    return Endpoint(
        options.endpoint,
        options.model,
        os.environ[options.key_env] if options.key_env else "",
        options.api,
        omit=options.omit,
        limit_field=options.limit_field,
        extra=_extra(options.extra_body),
        waits=options.waits,
        kept=kept,
    )


def _extra(text: str) -> dict[str, Any]:
    """The fields of --extra-body."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--extra-body={text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f'--extra-body={text!r} is {type(found).__name__}, not an object such as {{"top_k": 20}}')
    return found


def _local(
    options: EvalOptions, documents: "list[Document]"
) -> "tuple[Local, Local | None, dict[str, dict[str, Any]], rounded.Speeds]":
    """The model of this process; where something is rounded the same as it is, too, and how fast either decodes; bits
    per byte of it as it is and of what is rounded, each rounded once."""
    from sobre.app import rounded
    from sobre.eval.answer import Local
    from sobre.eval.bits import bits_per_byte, by_source
    from sobre.models.cache import Int8Cache
    from sobre.models.decoder import Decoder
    from sobre.serve.load import make_engine, open_folder

    opened = open_folder(
        options.folder, dtype=options.dtype, device=options.device, revision=options.revision, quiet=options.json
    )
    decoding = Decoding(weights=options.weights, cache=options.cache)
    engine = make_engine(opened.model, n_slots=AT_ONCE, max_context=0, decoding=decoding)
    chosen = engine.model
    assert isinstance(chosen, Decoder), "a loaded folder is a decoder"
    read: dict[str, tuple[Decoder, type[Int8Cache] | None]] = {"model": (opened.model, None)}
    if options.weights != "model":
        read[options.weights] = (chosen, None)
    if options.cache == "int8":
        read["int8-cache"] = (opened.model, Int8Cache)
    if options.weights != "model" and options.cache == "int8":
        read[f"{options.weights}+int8-cache"] = (chosen, Int8Cache)
    window = min(engine.max_len, BITS_WINDOW)
    scores = {
        kind: by_source(bits_per_byte(model, opened.tokenizer, documents, window=window, cache=cache))
        for kind, (model, cache) in (read if documents else {}).items()
    }
    local = Local(engine, opened.tokenizer, is_plain=options.style == "plain")
    if options.rounding == NO_ROUNDING:
        return local, None, scores, {}
    whole = make_engine(opened.model, n_slots=AT_ONCE, max_context=0)
    speeds = rounded.speeds({"model": whole, list(read)[-1]: engine}, AT_ONCE)
    return local, replace(local, engine=whole), scores, speeds


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] == 1 and isinstance(document["items"], list):
            return dict(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--against={path} is no result of sobre eval: {error!r}") from None
    raise DataError(f"--against={path} is no result of sobre eval")


def _bits(scores: dict[str, dict[str, Any]]) -> str:
    """Bits per byte of the text, and, where it has several sources, of each in a line of its own."""

    def line(what: str, of: dict[str, dict[str, Any]]) -> str:
        told = ", ".join(f"{score['value']:.4f} {HOW_READ[kind]}" for kind, score in of.items())
        return f"{what} of {of['model']['bytes']:,} bytes, bits per byte: {told}"

    sources = list(scores["model"]["sources"])
    each = [
        line(f"  {source}", {kind: score["sources"][source] for kind, score in scores.items()}) for source in sources
    ]
    return "\n".join([line("text", scores), *(each if len(sources) > 1 else ())])


def _line(name: str, found: dict[str, Any]) -> str:
    """One task in one line."""
    k = found["k"]
    average = found["average_at_k"]
    parts = [f"{name}: {average['value']:.1%} right ({average['ci_low']:.1%} to {average['ci_high']:.1%})"]
    if k > 1:
        parts.append(
            f"pass@{k} {found[f'pass_at_{k}']['value']:.1%}, majority@{k} {found['majority_at_k']['value']:.1%}"
        )
    if found["unjudged"]:
        parts.append(f"{found['unjudged']:,} problems left out, their judge failed")
    parts.append(f"{found['n']:,} problems, {found['truncated']:.0%} cut, {found['mean_tokens']:,.0f} tokens")
    others = {"as_it_is": "the model as it is", "against": "the other"}
    parts += [_compared(found[key], other) for key, other in others.items() if key in found]
    if "contamination" in found:
        parts.append(f"{len(found['contamination']['found'])} found in the training text")
        if left := found["contamination"]["not_looked_for"]:
            parts[-1] += f" ({left:,} not looked for: too short, or like another)"
    return "; ".join(parts)


def _compared(found: dict[str, Any], other: str) -> str:
    """The difference to another evaluation, with its interval and, where there is one, its p."""
    difference = found["difference"]
    chance = f", p = {found['p_value']:.2g}" if "p_value" in found else ""
    interval = f"{difference['ci_low']:+.1%} to {difference['ci_high']:+.1%}"
    return f"{difference['value']:+.1%} against {other} ({interval}{chance})"
