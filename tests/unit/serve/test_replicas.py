"""A router before servers of ours: a conversation stays where its beginning is cached, and moves when that one dies."""

import json
from contextlib import ExitStack

import pytest

from sobre.errors import ConfigError, RunError
from sobre.serve import replicas
from sobre.serve.command import wait_for_any
from sobre.serve.config import ServeConfig
from sobre.serve.replicas import Replicas, beginning, is_crowded, ranked

PATH = "/v1/chat/completions"
URLS = [f"http://10.0.0.{i}:8000" for i in range(5)]


def chat(i, *more, **fields):
    return {"model": "front", "messages": [{"role": "user", "content": f"question {i}"}, *more], **fields}


def test_a_conversation_keeps_its_place_and_the_places_share_the_conversations():
    again = ({"role": "assistant", "content": "7"}, {"role": "user", "content": "and?"})
    assert beginning(chat(1)) == beginning(chat(1, *again, temperature=0.5)) != beginning(chat(2))
    assert beginning(chat(1)) != beginning(chat(1, tools=[{"type": "function", "function": {"name": "f"}}]))
    first = [ranked(URLS, beginning(chat(i)))[0] for i in range(500)]
    assert all(60 < first.count(url) < 140 for url in URLS)
    assert first == [ranked(reversed(URLS), beginning(chat(i)))[0] for i in range(500)]


def test_one_that_goes_moves_its_own_conversations_and_no_other():
    keys = [beginning(chat(i)) for i in range(300)]
    before = {key: ranked(URLS, key) for key in keys}
    for key, order in before.items():
        left = ranked(URLS[1:], key)
        assert left == [url for url in order if url != URLS[0]]
    moved_to = {order[1] for order in before.values() if order[0] == URLS[0]}
    assert moved_to == set(URLS[1:]), "they spread over all that are left"


def test_the_crowded_and_the_dead_are_tried_last():
    router = Replicas(URLS[:3], 1.0)
    body = chat(1)
    first, second, third = router.order(body)
    router.mark(first, alive=False)
    assert router.order(body) == [second, third, first]
    router._each[second]._streams.update(object() for _ in range(9))
    assert router.order(body) == [third, second, first]
    assert is_crowded(9, 9, 2)
    assert not is_crowded(4, 8, 2)
    assert router.failure is None
    for url in URLS[:3]:
        router.mark(url, alive=False)
    assert isinstance(router.failure, RunError)


@pytest.fixture
def pair(serving, scripted, answer_ids):
    """Two servers, each with its own way to end it; what each was asked is in its engine."""
    with ExitStack() as stack:
        engines = [scripted(lambda request: answer_ids("hm", "seven")) for _ in range(2)]
        yield [stack.enter_context(serving(engine)) for engine in engines]


def told_by(pair):
    """How many requests each of the two has had."""
    return [len(live.engine.asked) for live in pair]


def chats_of(urls, n):
    """Numbers of chats: `n` whose place is the first address, then `n` of the next, and so on."""
    mine = {url: [i for i in range(100) if ranked(urls, beginning(chat(i)))[0] == url][:n] for url in urls}
    return [i for found in mine.values() for i in found]


@pytest.mark.slow
def test_chats_stay_move_and_come_back(pair, front, eventually, monkeypatch):
    monkeypatch.setattr(replicas, "CHECK_S", 0.1)
    http, service = front(*(live.url for live in pair))
    router, chats = service.bridge, chats_of([live.url for live in pair], 6)

    def places():
        """Which of the two answers each of the chats."""
        found = []
        for i in chats:
            before = told_by(pair)
            answered = http.post(PATH, json=chat(i))
            assert answered.json()["choices"][0]["message"]["content"] == "seven"
            found.append([now - then for now, then in zip(told_by(pair), before, strict=True)].index(1))
        return found

    at = [0] * 6 + [1] * 6
    assert places() == at
    assert places() == at
    pair[0].bridge.failure = RuntimeError("dead")
    assert eventually(lambda: not router.alive[pair[0].url])
    assert places() == [1] * 12
    assert http.get("/readyz").status_code == 200
    pair[1].bridge.failure = RuntimeError("dead")
    assert eventually(lambda: service.failure is not None)
    refused = http.post(PATH, json=chat(0))
    assert (refused.status_code, int(refused.headers["retry-after"])) == (503, 5)
    assert http.get("/readyz").status_code == 503
    for live in pair:
        live.bridge.failure = None
    assert eventually(lambda: all(router.alive.values()))
    assert places() == at
    assert router.n_open == 0


@pytest.mark.slow
def test_one_that_is_full_or_gone_is_passed_over_before_the_client_sees_anything(pair, front, faulty):
    def gone(one):
        one.connection.close()

    def full(one):
        one.send_error(429)

    for answer in (gone, full):
        urls = (faulty(answer), pair[0].url)
        http, service = front(*urls)
        for i in chats_of(urls, 4):
            assert http.post(PATH, json=chat(i)).status_code == 200
        assert service.bridge.n_open == 0


@pytest.mark.slow
def test_what_an_engine_fails_at_is_not_tried_on_the_next_and_what_has_begun_not_again(pair, front, faulty):
    def broken(one):
        one.send_error(500)

    def half(one):
        one.send_response(200)
        one.end_headers()
        begun = {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}
        one.wfile.write(f"data: {json.dumps(begun)}\n\n".encode())
        one.connection.close()

    for answer in (broken, half):
        urls = (faulty(answer), pair[0].url)
        http, service = front(*urls)
        before = len(pair[0].engine.asked)
        codes = [http.post(PATH, json=chat(i)).status_code for i in chats_of(urls, 4)]
        assert [code // 100 for code in codes] == [5] * 4 + [2] * 4
        assert len(pair[0].engine.asked) - before == 4
        assert service.bridge.n_open == 0


def test_a_router_starts_when_one_answers_and_says_which_do_not(live):
    said = []
    wait_for_any([live.url, "http://127.0.0.1:1"], said.append)
    assert len(said) == 1
    assert "http://127.0.0.1:1" in said[0]
    with pytest.raises(RunError, match="at any of"):
        wait_for_any(["http://127.0.0.1:1", "http://127.0.0.1:2"], said.append)


@pytest.mark.parametrize(
    "engine", [(), ("vllm", "http://a"), ("http://a", "http://a"), ("ftp://a",), ("sobre", "sobre")]
)
def test_engines_that_are_none_together_are_refused(engine):
    with pytest.raises(ConfigError, match="engine="):
        ServeConfig(model=("m",), engine=engine)
