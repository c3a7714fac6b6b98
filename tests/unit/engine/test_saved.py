"""Prefixes on disk: found again by whom they belong to, refused when they are anything else."""

import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.engine.saved import identity
from sobre.errors import EngineError
from sobre.models.config import BLOCK
from sobre.models.decoder import Decoder
from sobre.serve.prefixes import KeptPrefixes

PROMPT = tuple(range(1, 36))
FULL = 34 // BLOCK * BLOCK


def engine_of(model, **sizes):
    return Engine(model, EngineConfig(**{"max_batch": 2, "return_routes": True} | sizes))


def ask(engine, key="ann", prompt=PROMPT):
    (output,) = engine.generate([Request("a", prompt, SamplingParams(max_tokens=6, seed=1), cache_key=key)])
    return output


@pytest.fixture
def saved(model, tmp_path):
    """The file of an engine that has answered once, and what it said."""
    engine = engine_of(model)
    output = ask(engine)
    assert engine.save_prefixes(tmp_path / "m.prefixes", "w1") == len(PROMPT + (0,) * 5) // BLOCK * BLOCK
    return tmp_path / "m.prefixes", output


def test_another_engine_finds_them_under_the_same_key_alone(model, saved):
    path, output = saved
    engine = engine_of(model)
    assert engine.load_prefixes(path, "w1") == 32
    engine.check_integrity()
    assert ask(engine, key="bob").n_found == 0
    again = ask(engine)
    assert again.n_found == FULL
    assert (again.token_ids, again.logprobs) == (output.token_ids, output.logprobs)
    assert torch.equal(again.routes_LTA, output.routes_LTA)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["m.prefixes"]


def test_a_smaller_engine_takes_the_most_recent_ones(model, tmp_path):
    engine = engine_of(model, max_batch=4)
    for first in (40, 41, 42):
        ask(engine, prompt=(first, *PROMPT[1:]))
    engine.save_prefixes(tmp_path / "p", "w")
    small = engine_of(model, max_batch=1)
    assert small.load_prefixes(tmp_path / "p", "w") == 3 * BLOCK
    small.check_integrity()
    assert ask(small, prompt=(42, *PROMPT[1:])).n_found == FULL


def test_what_is_damaged_or_of_something_else_is_refused_and_nothing_of_it_is_used(model, saved, tmp_path):
    path, _ = saved
    cases = {"belongs to something else: it has another model": (path, "w2", {})}
    cases["another cache, layout"] = (path, "w1", {"cache": "int8"})
    cases["another layout"] = (path, "w1", {"return_routes": False})
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    (tmp_path / "bent").write_bytes(raw)
    cases["bent is damaged"] = (tmp_path / "bent", "w1", {})
    (tmp_path / "cut").write_bytes(raw[: len(raw) // 2])
    cases["cut cannot be read as prefixes"] = (tmp_path / "cut", "w1", {})
    save_file(load_file(path), tmp_path / "plain")
    cases["plain is no file of prefixes"] = (tmp_path / "plain", "w1", {})
    for message, (file, model_hash, sizes) in cases.items():
        engine = engine_of(model, **sizes)
        with pytest.raises(EngineError, match=message):
            engine.load_prefixes(file, model_hash)
        assert ask(engine).n_found == 0


def test_a_server_says_why_it_starts_without_them_and_replaces_the_file(model, saved):
    path, _ = saved
    told, engine = [], engine_of(model)
    kept = KeptPrefixes(engine, "w2", path.parent, "m", told.append)
    kept.load()
    assert told[0].startswith(f"prefixes: {path} belongs to something else")
    assert told[0].endswith("starting without them")
    ask(engine)
    kept.save()
    again = KeptPrefixes(engine_of(model), "w2", path.parent, "m", told.append)
    again.load()
    assert told[1:] == [f"prefixes: 32 tokens kept in {path}", f"prefixes: 32 tokens found again in {path}"]
    KeptPrefixes(engine, "w2", path / "no folder", "m", told.append).save()
    assert told[-1].startswith("prefixes: nothing was kept")


def test_the_identity_of_a_model_is_its_numbers(nano_config):
    one, same, other = Decoder(nano_config), Decoder(nano_config), Decoder(nano_config)
    for model, seed in ((one, 0), (same, 0), (other, 0)):
        model.init_weights(seed)
    with torch.no_grad():
        other.norm.weight[3] += 1e-6
    assert identity(one) == identity(same)
    assert len({identity(one), identity(other), identity(one.to(torch.bfloat16))}) == 3
