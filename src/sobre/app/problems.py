"""The sets of problems that a run learns from and is examined on, read once and held to.

problems.json in the run folder says what was read, how it was split, what was left out and why. A resumed run must find
the same files: other problems under the same names would be another run.
"""

import json
import random
from functools import cache
from typing import Any

from sobre.app.session import Session
from sobre.data.events import Events
from sobre.data.problems import ProblemSet, read_sets
from sobre.errors import RunError
from sobre.runtime.files import write_json
from sobre.tasks.base import Problem
from sobre.tasks.sampling import mixed_problem


def open_problems(session: Session) -> None:
    """Read the files of `tasks.files` and `tasks.test_files` into `session.sets`."""
    recipe = session.recipe
    if not (recipe.has_tasks and recipe.tasks.files):
        return
    events = Events(recipe.data.on_bad_record)
    session.sets = read_sets(recipe.tasks, events)
    document = {
        "schema": 1,
        "sets": {each.name: each.to_dict() for each in session.sets},
        "bad_records": events.to_json()["bad_records"],
    }
    session.processes.decide(lambda: _keep(session, document))
    for each in session.sets:
        session.console.say(_line(each))
    if events.n_bad:
        session.console.say(f"{events.n_bad:,} records of the problem files are malformed and left out (problems.json)")


def training_problem(session: Session, key: str, index: int) -> Problem:
    """Training problem `index` of the stream called `key`: of generated tasks and files in turn, equal parts of each.

    A file is gone through in an order of its own, again and again if the stream is longer.
    """
    tasks, sets = session.recipe.tasks, session.sets
    turn, place = index % (len(tasks.names) + len(sets)), index // (len(tasks.names) + len(sets))
    if turn < len(tasks.names):
        return mixed_problem(tasks, key, place * len(tasks.names) + turn)
    chosen = sets[turn - len(tasks.names)].train
    lap, at = divmod(place, len(chosen))
    return chosen[_order(f"{key}/{turn}/{lap}", len(chosen))[at]]


@cache
def _order(key: str, n: int) -> list[int]:
    return random.Random(f"problems/{key}").sample(range(n), n)


def _keep(session: Session, document: dict[str, Any]) -> None:
    path = session.folder.path / "problems.json"
    if not path.is_file():
        write_json(path, document)
        return
    before = json.loads(path.read_text(encoding="utf-8"))["sets"]
    changed = [name for name, found in document["sets"].items() if found["sha256"] != before[name]["sha256"]]
    if changed:
        raise RunError(
            f"{', '.join(document['sets'][name]['path'] for name in changed)}: not what the run began with"
            f" ({path}); put the old file back, or begin a new run"
        )


def _line(each: ProblemSet) -> str:
    left_out = {
        f"{each.repeated:,} asked twice": each.repeated,
        f"{each.too_long:,} too long": each.too_long,
        f"{each.overlapping:,} that overlap with held-out ones": each.overlapping,
    }
    omitted = ", ".join(text for text, count in left_out.items() if count)
    learned, chosen, tested = (f"{len(split):,}" for split in (each.train, each.val, each.test))
    counts = f"{learned} problems to learn from, {chosen} to choose by, {tested} for the test"
    return f"{each.name}: {counts}" + (f"; left out: {omitted}" if omitted else "")
