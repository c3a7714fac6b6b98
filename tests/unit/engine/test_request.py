import subprocess
import sys

import pytest

from sobre.engine.config import EngineConfig
from sobre.engine.request import SamplingParams
from sobre.errors import ConfigError, EngineError


@pytest.mark.parametrize(
    ("wrong", "value"),
    [("max_tokens", 0), ("temperature", -0.5), ("temperature", float("nan")), ("temperature", 1e-9)]
    + [("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")), ("top_k", -1)],
)
def test_a_sampling_parameter_out_of_range_is_refused_with_its_name_and_value(wrong, value):
    with pytest.raises(EngineError, match=f"{wrong}={value}"):
        SamplingParams(**({"max_tokens": 4} | {wrong: value}))


@pytest.mark.parametrize(("wrong", "value"), [("max_batch", 0), ("max_len", -1), ("prefill_tokens", 0)])
def test_an_engine_size_out_of_range_is_a_config_error_with_its_path(wrong, value):
    with pytest.raises(ConfigError, match=f"engine.{wrong}={value}"):
        EngineConfig(**{wrong: value})


def test_requests_scheduler_and_config_do_not_import_torch():
    modules = ", ".join(f"sobre.engine.{name}" for name in ("config", "request", "scheduler"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
