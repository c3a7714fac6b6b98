"""What was found among the chats, pairs and questions of the user's own files: records.json, and lines of the console.

Worked examples are generated and need no entry; the pretraining text has data.json, problems have problems.json.
"""

import json

from sobre.app.session import Session
from sobre.data.chats import ChatCounts
from sobre.data.events import Events
from sobre.runtime.files import write_json
from sobre.schemas import VERSION
from sobre.tasks.sampling import test_set


def exam_prompts(session: Session) -> list[str]:
    """The questions of the examination, generated ones and those from files."""
    recipe = session.recipe
    asked = test_set(cfg=recipe.tasks) if recipe.has_tasks and recipe.tasks.names else []
    return [problem.prompt for problem in (*asked, *(problem for each in session.sets for problem in each.test))]


def keep_records(session: Session, stage: str, events: Events, counts: ChatCounts | None = None) -> None:
    """Write what reading a stage's files found; a resumed run reads them again and writes the same."""
    found = events.to_json() | (counts.to_json(session.recipe.data) if counts else {})
    session.processes.decide(lambda: _write(session, stage, found))
    if events.n_bad:
        session.console.say(f"{stage}: {events.n_bad:,} malformed records are left out (records.json names the first)")
    if counts and counts.test_overlap.count:
        fate = "left out" if session.recipe.data.remove_test_overlap else "learned from all the same"
        session.console.say(f"{stage}: {counts.test_overlap.count:,} chats hold a test problem and are {fate}")


def _write(session: Session, stage: str, found: dict[str, object]) -> None:
    path = session.folder.path / "records.json"
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else {}
    write_json(path, {"schema": VERSION, "stages": {**stages, stage: found}})
