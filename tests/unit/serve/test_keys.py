"""Limits of a key: requests, tokens, dollars, and what the client is told."""

import pytest

from sobre.serve.errors import ApiError
from sobre.serve.keys import Account, Keyring, Limits, parse_key

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def account(**limits):
    clock = Clock()
    return Account("a", Limits(**limits), clock=clock, wall=clock), clock


def refused(one):
    with pytest.raises(ApiError) as caught:
        one.admit()
    return caught.value


def test_a_minutes_requests_come_at_once_and_then_evenly():
    one, clock = account(requests_per_min=3)
    for _ in range(3):
        one.admit()
        one.charge(0, 0)
    error = refused(one)
    assert (error.status, error.headers["retry-after"], error.headers["retry-after-ms"]) == (429, "20", "20000")
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 20
    one.admit()
    assert refused(one).status == 429


def test_an_overdrawn_bucket_waits_until_it_is_above_zero_and_never_says_more_than_two_minutes():
    one, clock = account(tokens_per_min=60)
    one.admit()
    one.charge(100, 0)
    assert refused(one).headers["retry-after"] == "41"
    clock.now += 41
    one.admit()
    one.charge(10_000, 0)
    assert refused(one).headers["retry-after"] == "120"


def test_a_days_budget_ends_with_402_and_comes_back_at_midnight():
    one, clock = account(usd_per_day=0.5)
    one.admit()
    one.charge(1, 0.5)
    error = refused(one)
    assert (error.status, error.code, error.headers["x-should-retry"]) == (402, "insufficient_quota", "false")
    clock.now += 86_400
    one.admit()
    assert one.usd == 0.5


def test_requests_that_are_open_are_counted():
    one, _ = account(max_open=1)
    one.admit()
    assert refused(one).status == 429
    one.charge(0, 0)
    one.admit()


@pytest.mark.slow
def test_keys_have_limits_of_their_own_and_an_administrator_sees_them_all(serving, scripted, answer_ids):
    engine = scripted(lambda request: answer_ids("a", "b"))
    keys = ("k1 requests_per_min=1", "k2", "boss admin name=boss")
    with serving(engine, api_key=keys) as live:

        def post(key):
            return live.http.post(PATH, json=HELLO, headers={"authorization": f"Bearer {key}"})

        first = post("k1")
        assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
        limited = post("k1")
        assert limited.status_code == 429
        assert 1 <= int(limited.headers["retry-after"]) <= 60
        assert post("k2").status_code == 200
        for path in ("/metrics", "/v1/sobre/keys"):
            assert live.http.get(path).status_code == 401
        check_that_one_sees_oneself_alone(live.http, "k2", "key1")
        boss = {"authorization": "Bearer boss"}
        listed = {one["name"]: one for one in live.http.get("/v1/sobre/keys", headers=boss).json()["data"]}
        assert (listed["key0"]["requests"], listed["key1"]["requests"]) == (1, 1)
        assert listed["key0"]["tokens"] == first.json()["usage"]["total_tokens"]
        assert listed["key0"]["usd"] == pytest.approx(first.json()["usage"]["cost_usd"])
        text = live.http.get("/metrics", headers=boss).text
        written = 2 * first.json()["usage"]["completion_tokens"]
        assert f'sobre_generation_tokens_total{{model_name="scripted"}} {written}.0' in text
        assert 'sobre_http_requests_total{status="429"} 1.0' in text
        assert not any(key in text for key in ("k1", "k2", "3+4"))
        assert live.http.get("/v1/models", headers={"x-api-key": "k2"}).status_code == 200


def check_that_one_sees_oneself_alone(http, key, name):
    """No series of the server, and one row of its keys."""
    own = {"authorization": f"Bearer {key}"}
    metrics = http.get("/metrics", headers=own)
    assert (metrics.status_code, metrics.json()["error"]["code"]) == (403, "not_admin")
    assert [row["name"] for row in http.get("/v1/sobre/keys", headers=own).json()["data"]] == [name]


def test_without_an_administrator_nobody_sees_what_others_use(serving, scripted, answer_ids):
    with serving(scripted(lambda request: answer_ids("a", "b")), api_key=("k1", "k2 name=ann")) as live:
        check_that_one_sees_oneself_alone(live.http, "k1", "key0")
        check_that_one_sees_oneself_alone(live.http, "k2", "ann")
    with serving(scripted(lambda request: answer_ids("a", "b"))) as live:
        assert live.http.get("/metrics").status_code == 200
        assert [row["name"] for row in live.http.get("/v1/sobre/keys").json()["data"]] == ["anyone"]


def test_a_budget_in_dollars_ends_with_the_answer_that_used_it_up(serving, scripted, answer_ids):
    engine = scripted(lambda request: answer_ids("a", "b"))
    with serving(engine, api_key=("poor usd_per_day=1e-12", "rich usd_per_day=100", "boss admin")) as live:

        def post(key):
            return live.http.post(PATH, json=HELLO, headers={"authorization": f"Bearer {key}"})

        assert post("poor").json()["usage"]["cost_usd"] > 1e-12
        refused = post("poor")
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_quota")
        assert refused.headers["x-should-retry"] == "false"
        assert post("rich").status_code == 200
        assert len(engine.asked) == 2


def test_what_a_key_has_computed_is_its_own_whatever_its_name_or_place():
    def ids(*lines):
        keys = [parse_key(line, number + 1, Limits()) for number, line in enumerate(lines)]
        ring = Keyring(keys)
        return [ring.find(key.text).id for key in keys]

    assert ids("a", "b") == ids("b", "a")[::-1]
    assert len(set(ids("a name=ann", "b name=ann"))) == 2
    assert Keyring([]).anyone.id == ""


def test_a_salt_of_the_request_keeps_its_prefixes_apart_within_a_key(serving, scripted, answer_ids, eventually):
    engine = scripted(lambda request: answer_ids("a", "b"))
    with serving(engine, api_key=("k1", "k2")) as live:

        def kept_under(key, path=PATH, **fields):
            body = fields if path != PATH else HELLO | fields
            assert live.http.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code == 200
            return engine.asked[-1].cache_key

        plain, salted = kept_under("k1"), kept_under("k1", cache_salt="s")
        assert eventually(lambda: len(engine.warmed) == 2)
        assert {key for _, key in engine.warmed} == {plain, salted}, "the next turn is kept where its history is"
        assert salted == kept_under("k1", "/v1/completions", model="scripted", prompt="a", cache_salt="s")
        assert len({plain, salted, kept_under("k1", cache_salt="t"), kept_under("k2", cache_salt="s")}) == 4
        refused = live.http.post(PATH, json=HELLO | {"cache_salt": ""}, headers={"authorization": "Bearer k1"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")
