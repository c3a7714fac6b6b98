"""Samples: the same problems before and after the last stage, thoughts included, good and bad.

They are chosen by a rule, not by hand: among the problems that both examinations answered, in the order of the test
mix, first those that became right, then those that stayed wrong, those that became wrong, and those that were right
before; each kind takes its problems from different tasks and languages while it can.
"""

from typing import Any

from sobre.report.run_files import Record
from sobre.tasks.format import THINK_CLOSE, THINK_OPEN, extract_answer

WANTED = (("became right", 3), ("stayed wrong", 2), ("became wrong", 1), ("stayed right", 1))
WANTED_ALONE = (("right", 3), ("wrong", 3))


def samples(evals: dict[str, Record]) -> dict[str, Any]:
    """`before` and `after` name the stages; `before` is None when only one stage was examined."""
    examined = [name for name, result in evals.items() if result.get("items")]
    if not examined:
        return {"before": None, "after": None, "chosen": []}
    after = examined[-1]
    before = examined[-2] if len(examined) > 1 else None
    earlier = {_identity(item): item for item in evals[before]["items"]} if before else {}
    kinds: dict[str, list[Record]] = {}
    for item in evals[after]["items"]:
        old = earlier.get(_identity(item))
        if before and old is None:
            continue
        kinds.setdefault(_kind(old, item), []).append(_sample(old, item))
    wanted = WANTED if before else WANTED_ALONE
    chosen = [{"kind": kind, **sample} for kind, n in wanted for sample in _varied(kinds.get(kind, []), n)]
    counts = {kind: len(found) for kind, found in kinds.items()}
    return {"before": before, "after": after, "counts": counts, "chosen": chosen}


def split_thought(completion: str) -> tuple[str, str | None]:
    """A completion as (thought, what follows it); None when the thought never ends."""
    thought, mark, rest = completion.partition(THINK_CLOSE)
    return thought.removeprefix(THINK_OPEN).strip("\n"), rest.strip() if mark else None


def _identity(item: Record) -> tuple[str, str, str]:
    return item["task"], item["lang"], item["prompt"]


def _kind(old: Record | None, new: Record) -> str:
    if old is None:
        return "right" if new["right"] else "wrong"
    return ("stayed " if old["right"] == new["right"] else "became ") + ("right" if new["right"] else "wrong")


def _sample(old: Record | None, new: Record) -> Record:
    shared = {name: new[name] for name in ("task", "lang", "difficulty", "prompt", "answer")}
    return {**shared, "before": _response(old) if old else None, "after": _response(new)}


def _response(item: Record) -> Record:
    thought, rest = split_thought(item["completion"])
    kept = {name: item[name] for name in ("right", "formatted", "length", "truncated")}
    return {"thought": thought, "response": rest, "extracted": extract_answer(item["completion"]), **kept}


def _varied(found: list[Record], n: int) -> list[Record]:
    """The first n, a new task and language each time while there is one."""
    chosen: list[Record] = []
    rest = list(found)
    while rest and len(chosen) < n:
        tasks, langs = {s["task"] for s in chosen}, {s["lang"] for s in chosen}
        best = min(rest, key=lambda s: (s["task"] in tasks) + (s["lang"] in langs))
        chosen.append(best)
        rest.remove(best)
    return chosen
