"""The command lines of other engines, and waiting until they answer. No torch here.

The argument parsers of vLLM 0.33.0 and SGLang 0.5.23 read them as meant; neither has been started by our tests.
"""

import time
import urllib.request
from collections.abc import Callable, Sequence
from urllib.error import URLError

from sobre.errors import RunError
from sobre.serve.process import EngineProcess

START_S = 1800.0
"""Large models load for minutes."""


def command(engine: str, model: str, name: str, port: int, max_context: int) -> list[str]:
    """How to start `engine` on this machine alone, at `port`."""
    if engine == "vllm":
        line = ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
        return [*line, *(["--max-model-len", str(max_context)] if max_context else [])]
    line = ["python", "-m", "sglang.launch_server", "--model-path", model, "--host", "127.0.0.1", "--port", str(port)]
    line += ["--served-model-name", name]
    return [*line, *(["--context-length", str(max_context)] if max_context else [])]


def wait_until_ready(url: str, process: EngineProcess | None, say: Callable[[str], None]) -> None:
    """Until GET /v1/models answers; of a process that was started, 503 says that it is still loading.

    Raises RunError when the process ends first, or nothing comes for half an hour.
    """
    began, told = time.monotonic(), 0.0
    while True:
        if process is not None and process.code is not None:
            raise RunError(f"the engine ended with exit code {process.code} before it answered")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                return
        except (URLError, OSError) as error:
            if isinstance(error, urllib.request.HTTPError) and not (process is not None and error.code == 503):
                raise RunError(f"{url}/v1/models answers {error.code}") from None
        waited = time.monotonic() - began
        if process is None or waited > START_S:
            raise RunError(f"no engine answers at {url}")
        if waited - told > 15:
            told = waited
            say(f"waiting for the engine: {waited:.0f} s")
        time.sleep(0.5)


def wait_for_any(urls: Sequence[str], say: Callable[[str], None]) -> None:
    """At least one of several engines must answer now; those that do not are named, and may come later."""
    absent = []
    for url in urls:
        try:
            wait_until_ready(url, None, say)
        except RunError as error:
            absent.append(url)
            say(f"{error}; its conversations go to the others until it does")
    if len(absent) == len(urls):
        raise RunError(f"no engine answers at any of {', '.join(urls)}")
