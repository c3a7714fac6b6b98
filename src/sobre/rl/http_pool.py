"""Samplers behind HTTP: servers of vLLM or SGLang in the place of actors on Ray, behind the same seam (`Pool`).

Prompts go as token ids; token ids and the log-probability of each come back, so nothing is tokenized twice. Weights go
by version as a folder in the Hugging Face layout, which every server reads from the same path, on this machine or in a
shared file system. A server changes its weights in place, so an update waits for the answers that are under way: each
answer is of one version, as with every other sampler. Requests are dealt to the servers in turn, in order.

    vLLM      POST /v1/completions {"prompt": ids, "logprobs": 1, "return_token_ids": true, ...}
              POST /collective_rpc {"method": "reload_weights", "kwargs": {"weights_path": folder}}
              POST /reset_prefix_cache
              Started with VLLM_SERVER_DEV_MODE=1, which opens the last two, and `--logprobs-mode processed_logprobs`
              (its own default reports log-probabilities from before the temperature).
    SGLang    POST /generate {"input_ids": ids, "return_logprob": true, "sampling_params": {...}}
              POST /update_weights_from_disk {"model_path": folder, "weight_version": version}

As their sources of 2026 have it: vLLM's `CompletionRequest`, its RPC of dev mode and `GPUModelRunner.reload_weights`;
SGLang's `GenerateReqInput` and `UpdateWeightFromDiskReqInput`. Tested against a server of ours that speaks these
fields, never against either.

Another engine computes other log-probabilities and chooses other experts, hence truncated importance sampling
(`rl.max_correction`), which the config asks for. A server that is dead, slow or answers anything else ends the run with
its address and what it said; nothing is asked twice. The run goes on from its saved state once the server does.
"""

import json
import math
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from sobre.engine.engine import EngineStats
from sobre.engine.request import FinishReason, Output, Request
from sobre.errors import RunError
from sobre.rl.config import SamplersConfig
from sobre.rl.worker import Weights

T = TypeVar("T")
UNFILTERED = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Every token may be sampled, with the probability that the model gives it at the temperature."""
UPPER = 1e-3
"""How far above 0 rounding may lift a log-probability."""
ENDS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True)
class Asked:
    """A request that a server works on, or has answered."""

    request: Request
    answer: "Future[Output]"


class HttpPool:
    """The servers of `cfg.urls`. `save` writes the learner's model into a folder; `flops` says what an answer took."""

    def __init__(
        self,
        cfg: SamplersConfig,
        *,
        vocab_size: int,
        folder: Path,
        save: Callable[[Path], None],
        flops: Callable[[int], float],
    ) -> None:
        self._cfg, self._vocab_size, self._folder, self._save, self._flops = cfg, vocab_size, folder, save, flops
        self._threads = _Threads(cfg.at_once * len(cfg.urls))
        self._asked: dict[str, Asked] = {}
        self._version = 0
        self._n_dealt = 0

    def push(self, version: int, weights: Weights) -> None:
        """Requests that are begun from now on are answered with the learner's weights, which the servers read from
        disk: none need to be handed over."""
        wait_for([asked.answer for asked in self._asked.values()])
        place = self._folder / f"version-{version}"
        self._forget()  # the version before, or what a run that was killed has left
        self._save(place)
        self._version = version
        for done in [self._threads.submit(partial(self._update, url, place)) for url in self._cfg.urls]:
            done.result()

    def begin(self, requests: Sequence[Request]) -> None:
        """Hand requests over. Those of an id that is under way already take its place."""
        for request in requests:
            url = self._cfg.urls[self._n_dealt % len(self._cfg.urls)]
            self._n_dealt += 1
            answer = self._threads.submit(partial(self._answer, url, request, self._version))
            self._asked[request.id] = Asked(request, answer)

    def finish(self, requests: Sequence[Request]) -> tuple[list[Output], EngineStats]:
        """Wait for requests, which are begun now if they were not; outputs in their order."""
        self.begin([r for r in requests if r.id not in self._asked or self._asked[r.id].request != r])
        outputs = [self._asked.pop(request.id).answer.result() for request in requests]
        return outputs, self._stats(requests, outputs)

    def close(self) -> None:
        """Nothing is asked any more; the folder of the weights goes."""
        self._threads.close()
        self._forget()

    def _forget(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _stats(self, requests: Sequence[Request], outputs: Sequence[Output]) -> EngineStats:
        """What the servers did; they do not say what they found again, so every prompt counts as computed."""
        n_prompt = sum(len(request.prompt_ids) for request in requests)
        n_new = sum(len(output.token_ids) for output in outputs)
        lengths = [len(r.prompt_ids) + len(o.token_ids) - 1 for r, o in zip(requests, outputs, strict=True)]
        nothing = EngineStats(**{field.name: 0 for field in fields(EngineStats)})
        return replace(
            nothing,
            requests=len(requests),
            prompt_tokens=n_prompt,
            computed_tokens=sum(lengths),
            generated_tokens=n_new,
            flops=sum(map(self._flops, lengths)),
        )

    def _update(self, url: str, place: Path) -> None:
        path = str(place.resolve())
        if self._cfg.api == "vllm":
            self._post(url, "collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
            self._post(url, "reset_prefix_cache", {})
            return
        body = {"model_path": path, "weight_version": str(self._version)}
        found = self._read(url, "update_weights_from_disk", body)
        if not (isinstance(found, dict) and found.get("success") is True):
            raise RunError(f"{url}/update_weights_from_disk did not take the weights in {path}: {_short(found)}")

    def _answer(self, url: str, request: Request, version: int) -> Output:
        if self._cfg.api == "vllm":
            where, body = "v1/completions", {"model": self._cfg.model_name, **vllm_body(request)}
        else:
            where, body = "generate", sglang_body(request)
        found = self._read(url, where, body)
        try:
            ids, logprobs, reason, told = (read_vllm if self._cfg.api == "vllm" else read_sglang)(found)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RunError(f"{url}/{where} answers otherwise than asked ({error!r}): {_short(found)}") from None
        wrong = self._wrong(request, ids, logprobs, reason)
        if told not in (None, str(version)):
            wrong = f"it sampled with weights {told!r}, not {version}"
        if wrong:
            raise RunError(f"{url}/{where}: {wrong}; request {request.id}: {_short(found)}")
        return Output(request.id, ids, logprobs, ENDS[reason], weight_version=version)

    def _wrong(self, request: Request, ids: list[int], logprobs: list[float], reason: str) -> str:
        """What makes an answer useless, or nothing."""
        params = request.params
        if len(ids) != len(logprobs):
            return f"{len(ids)} tokens have {len(logprobs)} log-probabilities"
        if not 1 <= len(ids) <= params.max_tokens:
            return f"{len(ids)} tokens, and 1 to {params.max_tokens} were asked for"
        if not all(0 <= token < self._vocab_size for token in ids):
            return f"a token outside the vocabulary of {self._vocab_size}"
        if not all(math.isfinite(logprob) and logprob <= UPPER for logprob in logprobs):
            return "a log-probability that is none"
        if reason not in ENDS:
            return f"it ended by {reason!r}, not by one of {', '.join(ENDS)}"
        if reason == "stop" and ids[-1] not in params.stop_ids:
            return f"it stopped at token {ids[-1]}, which is not one of {list(params.stop_ids)}"
        if reason == "length" and len(ids) < params.max_tokens:
            return f"it was cut at {len(ids)} of {params.max_tokens} tokens: is the server's context shorter?"
        return ""

    def _read(self, url: str, where: str, body: Mapping[str, Any]) -> Any:
        said = self._post(url, where, body)
        try:
            return json.loads(said)
        except ValueError:
            raise RunError(f"{url}/{where} answers with something that is not JSON: {said[:300]!r}") from None

    def _post(self, url: str, where: str, body: Mapping[str, Any]) -> bytes:
        address = f"{url}/{where}"
        asked = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=self._cfg.timeout_s) as response:
                said: bytes = response.read()
                return said
        except urllib.error.HTTPError as error:
            raise RunError(f"{address} answers {error.code}: {error.read(500).decode('utf-8', 'replace')}") from None
        except TimeoutError:
            raise RunError(f"{address} did not answer within rl.samplers.timeout_s={self._cfg.timeout_s:g} s") from None
        except OSError as error:
            raise RunError(f"{address} cannot be asked: {error}") from None


class _Threads:
    """Threads that wait for servers, and that a process which ends does not wait for."""

    def __init__(self, n: int) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._n = n
        for _ in range(n):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        done: Future[T] = Future()

        def job() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # it is raised where the result is read
                done.set_exception(error)

        self._jobs.put(job)
        return done

    def close(self) -> None:
        """Jobs that have not begun are left."""
        while not self._jobs.empty():
            self._jobs.get()
        for _ in range(self._n):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def vllm_body(request: Request) -> dict[str, Any]:
    """A request as vLLM's completions read it. All is said: a server would take what is not from the model's folder."""
    params = request.params
    return {
        "prompt": list(request.prompt_ids),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "seed": params.seed,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": True,  # stop_token_ids says it all
        "logprobs": 1,
        "return_token_ids": True,
        **UNFILTERED,
    }


def sglang_body(request: Request) -> dict[str, Any]:
    """A request as SGLang's own API reads it. It has no seed for a request there, so a run is not repeated exactly."""
    params = request.params
    sampling = {
        "max_new_tokens": params.max_tokens,
        "temperature": params.temperature,
        "stop_token_ids": list(params.stop_ids),
        **UNFILTERED,
    }
    return {"input_ids": list(request.prompt_ids), "sampling_params": sampling, "return_logprob": True}


def read_vllm(found: Any) -> tuple[list[int], list[float], str, str | None]:
    """(token ids, their log-probabilities, why it ended, version of the weights where told)."""
    choice = found["choices"][0]
    return _ints(choice["token_ids"]), _floats(choice["logprobs"]["token_logprobs"]), choice["finish_reason"], None


def read_sglang(found: Any) -> tuple[list[int], list[float], str, str | None]:
    """(token ids, their log-probabilities, why it ended, version of the weights where told)."""
    meta = found["meta_info"]
    listed = meta["output_token_logprobs"]
    ids, logprobs = _ints(found["output_ids"]), _floats([logprob for logprob, *_ in listed])
    if [token for _, token, *_ in listed] != ids:
        raise ValueError("the log-probabilities are of other tokens")
    return ids, logprobs, meta["finish_reason"]["type"], meta.get("weight_version")


def _ints(values: Any) -> list[int]:
    if not all(type(value) is int for value in values):
        raise TypeError("token ids that are no whole numbers")
    return list(values)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]


def _short(found: Any) -> str:
    return json.dumps(found)[:300]
