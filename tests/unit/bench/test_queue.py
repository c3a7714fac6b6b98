"""The queue does each cell once, goes on where it stopped, and never mixes sources."""

import json
from dataclasses import replace

import jsonschema
import pytest

from sobre.bench.queue import Cell, Queue, interleaved, means, target
from sobre.bench.result import Source
from sobre.errors import RunError
from sobre.schemas import schema

HERE = Source("a" * 40, False, "0" * 32)


def cells(n: int, **settings) -> list[Cell]:
    return [Cell("x", i, {"seed": i, **settings}) for i in range(n)]


class Worker:
    """Counts what it does; dies at a chosen cell."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.done: list[int] = []
        self.dies_at = dies_at

    def __call__(self, cell, place):
        assert list(place.iterdir()) == []
        (place / "half").write_text("written before the kill")
        if cell.settings["seed"] == self.dies_at:
            raise KeyboardInterrupt
        self.done.append(cell.settings["seed"])
        return {"score": float(cell.settings["seed"])}


def queue(tmp_path, source=HERE, **options) -> Queue:
    return Queue(tmp_path, "test", lambda line: None, look=lambda: source, **options)


def test_a_killed_queue_goes_on_with_the_cell_it_was_killed_in(tmp_path):
    first, second = Worker(dies_at=2), Worker()
    with pytest.raises(KeyboardInterrupt), queue(tmp_path) as q:
        q.run(cells(4), first)
    with queue(tmp_path) as q:
        documents = q.run(cells(4), second)
    assert (first.done, second.done) == ([0, 1], [2, 3])
    assert [document["figures"]["score"] for document in documents] == [0.0, 1.0, 2.0, 3.0]
    for document in documents:
        jsonschema.validate(document, schema("bench"))


def test_other_settings_are_other_cells(tmp_path):
    with queue(tmp_path) as q:
        q.run(cells(2), Worker())
        worker = Worker()
        q.run(cells(2, budget="7m"), worker)
    assert worker.done == [0, 1]


def test_it_stops_after_max_cells_and_skipped_ones_do_not_count(tmp_path):
    worker = Worker()
    for _ in range(2):
        with queue(tmp_path, max_cells=2) as q:
            documents = q.run(cells(5), worker)
    assert worker.done == [0, 1, 2, 3]
    assert len(documents) == 4


def test_cells_of_another_commit_or_another_dirty_state_are_not_found(tmp_path):
    others = [HERE, replace(HERE, commit="b" * 40), replace(HERE, dirty=True), Source("a" * 40, True, "1" * 32)]
    workers = [Worker() for _ in others]
    for source, worker in zip(others, workers, strict=True):
        with queue(tmp_path, source) as q:
            assert len(q.run(cells(2), worker)) == 2
    assert [worker.done for worker in workers] == [[0, 1]] * 4


def test_a_cell_of_another_source_in_the_wrong_place_is_an_error(tmp_path):
    with queue(tmp_path) as q:
        q.run(cells(1), Worker())
        file = next(q.folder.glob("cells/*.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | {"commit": "c" * 40}))
        with pytest.raises(RunError, match="cells of different sources are never averaged"):
            q.run(cells(1), Worker())


def test_a_source_that_changes_under_the_queue_stops_it_and_the_cell_at_hand_is_not_kept(tmp_path):
    now = [HERE]
    worker = Worker()

    def work(cell, place):
        now[0] = replace(HERE, commit="b" * 40) if cell.round == 1 else HERE
        return worker(cell, place)

    with Queue(tmp_path, "test", lambda line: None, look=lambda: now[0]) as q:
        with pytest.raises(RunError, match="source changed .* it is not kept"):
            q.run(cells(3), work)
        assert [document["cell"]["round"] for document in map(q.finished, cells(3)) if document] == [0]


def test_means_of_two_sources_are_refused(tmp_path):
    documents = []
    for source in (HERE, replace(HERE, commit="b" * 40)):
        with queue(tmp_path, source) as q:
            documents += q.run(cells(1), Worker())
    with pytest.raises(RunError, match="2 sources cannot be averaged"):
        means(documents)


def test_means_are_over_the_runs_that_have_the_figure():
    def document(contestant, **figures):
        return {"commit": None, "digest": "", "cell": {"contestant": contestant}, "figures": figures}

    found = means([document("a", x=1.0), document("a", x=4.0, y=2.0), document("b", x=9.0)])
    assert found["a"]["x"] == {"mean": 2.5, "lowest": 1.0, "highest": 4.0, "n": 2}
    assert found["a"]["y"]["n"] == 1
    assert found["b"]["x"]["mean"] == 9.0


def test_two_queues_do_not_work_in_one_folder(tmp_path):
    with queue(tmp_path), pytest.raises(RunError, match="another queue"), queue(tmp_path):
        pass
    with queue(tmp_path):
        pass


def test_rounds_interleave_the_contestants():
    order = interleaved({"a": cells(2), "b": [Cell("y", i, {}) for i in range(3)]})
    assert [(cell.contestant, cell.round) for cell in order] == [("x", 0), ("y", 0), ("y", 1), ("x", 1), ("y", 2)]


def test_a_target_is_reached_missed_or_unknown():
    assert [target("t", value, ">=", 0.85)["reached"] for value in (0.85, 0.84, None)] == [True, False, None]
    assert [target("t", value, "<", 2.0)["reached"] for value in (1.9, 2.0)] == [True, False]
