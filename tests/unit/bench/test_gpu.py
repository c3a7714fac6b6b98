"""The benchmark of one accelerator runs here, too, in tiny sizes, and with nothing but torch and numpy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sobre.bench import gpu
from sobre.bench.gpu import rivals
from sobre.errors import RunError
from sobre.kernels import select
from sobre.schemas import schema

BARE = """
import sys
OURS = {"pydantic", "tyro", "rich", "tokenizers", "safetensors", "fastapi", "pyarrow", "llguidance", "huggingface_hub"}


class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Bare())
from sobre.bench.gpu import PARTS, main

for part in ("train", "compiled", "kernels", "decode", "rl"):
    main([part, "--out", f"{sys.argv[1]}/{part}.json", "--device", "cpu"])
"""


@pytest.mark.slow
def test_a_bare_machine_measures_and_says_that_tiny_sizes_mean_nothing(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    subprocess.run([sys.executable, "-c", BARE, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())}
    assert list(found) == ["compiled", "decode", "kernels", "rl", "train"]
    for part, document in found.items():
        jsonschema.validate(document, schema("bench"))
        assert document["settings"]["device"] == "cpu"
        assert document["notes"] == ["no accelerator: tiny sizes, the figures say nothing of a GPU"]
        assert document["cell"]["id"] == part
    figures = found["train"]["figures"]
    assert figures["share_of_peak"] == pytest.approx(figures["flops_per_s"] / figures["peak_flops_per_s"])
    assert "memory_bytes" not in figures
    chosen = select.choose("latent_decode", "cpu", torch.bfloat16)
    assert found["kernels"]["figures"]["latent_decode_kernel"] == chosen.name
    assert found["kernels"]["figures"]["latent_decode_over_gathered"] > 0
    assert found["rl"]["figures"]["rollout_tokens_per_s"] > 0
    assert found["rl"]["figures"]["recomputes"] == found["rl"]["figures"]["takes_turns"] == 1.0
    assert abs(found["compiled"]["figures"]["loss_first_difference"]) < 1e-3
    assert found["decode"]["figures"]["b4_steps_recorded"] == 0
    assert found["decode"]["figures"]["b1_int4_over_bfloat16"] > 0


def test_a_kernel_is_compared_with_what_can_run_in_its_place(monkeypatch):
    """On a card with triton and no library."""
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: name if name == "triton" else None)
    ops = {"take_rows": torch.bfloat16, "weighted_swiglu": torch.bfloat16, "latent_decode": torch.bfloat16}
    found = {
        op: rivals(select.choose(op, "cuda", dtype), "cuda") for op, dtype in {**ops, "draw": torch.float32}.items()
    }
    assert found == {
        "take_rows": ["gathers"],
        "weighted_swiglu": ["reference"],
        "latent_decode": ["gathered"],
        "draw": ["blocks"],
    }


@pytest.mark.slow
def test_decode_steps_are_set_beside_those_of_transformers_on_the_same_weights(monkeypatch):
    pytest.importorskip("transformers")
    found = gpu.transformers(gpu.Place(torch.device("cpu"), full=False))
    assert found["logits_difference"] < gpu.SAME_LOGITS
    assert found["b2_over_transformers"] == pytest.approx(found["b2_transformers_step_s"] / found["b2_step_s"])
    monkeypatch.setattr(gpu, "SAME_LOGITS", 0.0)
    with pytest.raises(RunError, match="logits differ from transformers'"):
        gpu.transformers(gpu.Place(torch.device("cpu"), full=False))


@pytest.mark.slow
def test_make_gpu_says_what_is_missing_runs_what_can_run_and_writes_its_results(tmp_path):
    """In a Python that has nothing at all, not even torch."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    script = Path(__file__).resolve().parents[3] / "scripts" / "gpu.py"
    command = [str(tmp_path / "venv" / "bin" / "python"), str(script), "--out", str(tmp_path / "out"), "--parts"]
    done = subprocess.run([*command, "peak", "rl", "transformers"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "missing: torch, numpy, pytest, pytest-timeout; put their wheels into a folder" in done.stdout
    assert "not here, and left out: triton, transformers, trl" in done.stdout
    assert "no accelerator" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["missing"] == ["torch", "numpy", "pytest", "pytest-timeout"]
    assert {part: found["exit_code"] for part, found in results["parts"].items()} == {
        "peak": 1,
        "rl": 1,
        "transformers": 0,
    }
    assert results["parts"]["transformers"]["last_line"] == "left out: transformers is not here"
    assert "No module named 'torch'" in (tmp_path / "out" / "peak.log").read_text()
