"""How requests end: each is counted, billed and let go, whatever was written and whoever left."""

import pytest

PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
KEY = {"authorization": "Bearer k1"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_no_next_turn_can_hold_is_billed_and_leaves_no_request_open(
    serving, scripted, answer_ids, eventually, stream
):
    """A tag spelt as text and never closed: the chat layout refuses the history."""
    engine = scripted(lambda request: answer_ids("hm", "<think> so it is 7"))
    with serving(engine, api_key=("k1 admin max_open=1",)) as live:
        for n in (1, 2, 3):
            answered = live.http.post(PATH, json=HELLO | {"stream": stream}, headers=KEY)
            assert answered.status_code == 200
            assert "<think> so it is 7" in answered.text or stream
            row = live.http.get("/v1/sobre/keys", headers=KEY).json()["data"][0]
            assert (row["open"], row["requests"]) == (0, n)
            assert row["tokens"] >= 20 * n
            assert row["usd"] > 0
        assert eventually(lambda: not live.bridge.n_open)
        assert engine.warmed == []
