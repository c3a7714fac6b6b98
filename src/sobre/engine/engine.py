"""The engine: requests in, tokens out, any number at a time. A `step`: schedule, run, sample, keep the books.

What a request gets depends on its prompt, its parameters and the weights; its companions change only the rounding
of the model's sums. Nothing is dropped: a request that cannot be served is refused by `add`, with the reason.
One thread at a time; the server's bridge gives the engine a thread of its own.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobre import __version__
from sobre.engine import saved
from sobre.engine.batch import Batch
from sobre.engine.config import EngineConfig
from sobre.engine.determinism import check_rows, fixed_shapes
from sobre.engine.drafting import Lookup
from sobre.engine.ending import finish_reason, plain_reason
from sobre.engine.pages import block_tokens
from sobre.engine.request import FinishReason, Output, Request, SamplingParams, Token
from sobre.engine.runner import Runner
from sobre.engine.sampling import model_logprobs, sample
from sobre.engine.scheduler import Row, Scheduler
from sobre.engine.shaping import shape
from sobre.engine.static import Model
from sobre.engine.weights import prepared, refresh
from sobre.errors import ConfigError, EngineError, PromptTooLong

DEFAULT = EngineConfig()
Pooling = Literal["mean", "last"]


class NoNumbers(EngineError):
    """The model's logits for these requests are NaN."""

    def __init__(self, request_ids: tuple[str, ...]) -> None:
        super().__init__(f"the model gave logits that are no numbers for {', '.join(request_ids)}; look at its weights")
        self.request_ids = request_ids


@dataclass(frozen=True)
class EngineStats:
    """What the engine has done since it was made."""

    requests: int
    prompt_tokens: int
    """Of the prompts as asked."""
    found_tokens: int
    """Of these, in the cache already when the request first ran."""
    drafted_tokens: int
    """Guessed ahead and checked."""
    accepted_tokens: int
    """Of these, right."""
    preemptions: int
    """Times that a request gave its blocks back to an older one."""
    computed_tokens: int
    """That went through the model: shared prompts once, every sampled token but the last of an answer."""
    generated_tokens: int
    steps: int
    flops: float
    """Of the forward passes, as `plan` counts them."""
    seconds: float
    """Spent inside steps."""
    lost: int = 0
    """Requests that died with an engine apart, and were begun anew (rl/ray_pool.py)."""
    lost_s: float = 0.0
    """What was spent on them, as a share of all such engines' time."""


class Engine:
    """Continuous batching over one model. `run_seed` and the request's seed make the samples."""

    def __init__(self, model: Model, cfg: EngineConfig = DEFAULT, *, run_seed: int = 0) -> None:
        computing = prepared(model, cfg.weights)
        # no update reaches rounded weights, so the model's own may go
        self.model, self.cfg, self.run_seed = model if cfg.weights == "model" else computing, cfg, run_seed
        self.max_len = _max_len(cfg, model)
        self.weight_version = 0
        self._device = _device(model)
        block = block_tokens(computing, cfg, self.max_len, self._device)
        n_blocks = _n_blocks(cfg, self.max_len, block)
        self._scheduler = Scheduler(
            cfg.max_batch, cfg.prefill_tokens, n_blocks, block=block, finds_prefixes=cfg.prefix_cache
        )
        self._runner = Runner(computing, cfg, self.max_len, n_blocks, block, run_seed, self._device)
        if cfg.deterministic:
            check_rows(self._runner.model)
            self._runner.cache.reads_fresh = True
        self.suspects: tuple[str, ...] = ()
        """Requests that the last failed step is laid at."""
        self._lookup = Lookup() if cfg.speculate and self._runner.own_head is None else None
        self._drafted = self._accepted = 0
        self._batch: Batch | None = None
        self._warmed = 0
        self._started: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._requests = self._prompt_tokens = self._found = self._generated = self._steps = 0
        self._seconds = 0.0

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs, or a prefix is still to be warmed."""
        return self._scheduler.has_work

    @property
    def n_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def n_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def n_blocks_held(self) -> int:
        """Blocks of the cache that running requests hold; prefixes that are merely kept do not count."""
        pool = self._scheduler.pool
        return pool.n_blocks - pool.n_available

    @property
    def drafts(self) -> tuple[int, int]:
        """Tokens guessed ahead and checked, and how many of them were right."""
        return self._drafted, self._accepted

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache, as long as the engine does not rest."""
        return self._runner.cache.size_bytes

    @property
    def n_recorded(self) -> int:
        """Sizes of decode steps that were recorded, and run as one (engine/static.py)."""
        return self._runner.n_recorded

    @property
    def stats(self) -> EngineStats:
        runner = self._runner
        return EngineStats(
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            found_tokens=self._found,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            preemptions=self._scheduler.n_preempted,
            computed_tokens=runner.n_prefilled + runner.n_decoded,
            generated_tokens=self._generated,
            steps=self._steps,
            flops=runner.flops,
            seconds=self._seconds,
        )

    def add(self, request: Request) -> None:
        """Take a request, or refuse it with the reason; it starts with the next step that has room."""
        self._check(request)
        if request.id in self._scheduler:
            raise EngineError(f"request {request.id!r} is already here; ids of requests in flight must differ")
        self._scheduler.add(request)
        self._requests += 1
        self._prompt_tokens += len(request.prompt_ids)

    def abort(self, request_id: str) -> Output | None:
        """Stop a request wherever it stands and return what it got; None when it is not here (any more)."""
        row = self._scheduler.remove(request_id)
        return None if row is None else _output(row, "abort", None)

    def warm(self, prompt_ids: Sequence[int], cache_key: str = "") -> None:
        """Compute this prompt when nothing else is to be done, for a request that will begin so.

        For the next turn of a chat whose thoughts are dropped: the history then differs from what was computed, from
        the thought on. A step may thus return no token while `has_work`. Without room nothing is computed.
        """
        request = Request(f"warm/{self._warmed}", tuple(prompt_ids), SamplingParams(max_tokens=1), cache_key=cache_key)
        self._warmed += 1
        self._check(request)
        if self.cfg.prefix_cache:
            self._scheduler.warming.append(request)

    def embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
        """vectors_RD (float32) of these prompts, read in one pass without the cache: the final norm's states, of all
        tokens in the mean or of the last one, scaled to length 1."""
        for prompt in prompts:
            self._check(Request("embed", tuple(prompt), SamplingParams(max_tokens=1)), n_new=0)
        with torch.inference_mode(), self._kernels():
            hidden_ND = self._runner.read(prompts)
        states = hidden_ND.float().split([len(prompt) for prompt in prompts])
        pooled_RD = torch.stack([one_TD[-1] if pooling == "last" else one_TD.mean(0) for one_TD in states])
        return torch.nn.functional.normalize(pooled_RD, dim=-1).cpu()

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block and slot is held by exactly who should hold it."""
        self._scheduler.check()

    def step(self) -> list[Token]:
        """One token for every running request, after as many have started as there is room for."""
        return self._advance()[0]

    def generate(
        self, requests: Sequence[Request], enough: Callable[[Mapping[str, Output]], bool] | None = None
    ) -> list[Output]:
        """Run these requests to their ends, in the engine's own time; outputs in the order of the requests.

        With `enough`, until it says so of the outputs so far, by request id: the others come as far as they are, with
        "abort" as the reason of their end.
        """
        if self.n_running or self.n_waiting:
            raise EngineError(f"generate needs an idle engine; {self.n_running} run and {self.n_waiting} wait")
        for request in requests:
            self._check(request)
        outputs: dict[str, Output] = {}
        try:
            for request in requests:
                self.add(request)
            while len(outputs) < len(requests) and not (enough is not None and enough(outputs)):
                outputs |= {output.request_id: output for output in self._advance()[1]}
        finally:
            cut = [self.abort(request.id) for request in requests]
        outputs |= {output.request_id: output for output in cut if output is not None}
        return [outputs[request.id] for request in requests]

    def weights_changed(self) -> None:
        """The weights are others now: what the old ones cached is computed anew. Call it after each update."""
        if self.cfg.weights != "model":
            raise EngineError(f"engine.weights={self.cfg.weights!r} were made once; build a new engine for new weights")
        self.weight_version += 1
        refresh(self._runner.model, self.model)
        self._runner.weights_changed()
        self._scheduler.requeue()

    def save_prefixes(self, path: Path, model: str) -> int:
        """Write all that can be found again to a file (saved.py); `model` is the identity of its weights. Returns how
        many tokens that is."""
        self._runner.cache.wake()
        known = self._scheduler.pool.prefixes()
        blocks = torch.tensor(list(known.values()), dtype=torch.int64, device=self._device)
        kept_B = [kept_B[blocks] for kept_B in self._runner.by_block()]
        saved.write(path, saved.Prefixes(list(known), kept_B), self._bound_to(model))
        return len(known) * self._scheduler.block

    def load_prefixes(self, path: Path, model: str) -> int:
        """Find again what `save_prefixes` wrote, as far as there is room; raises EngineError for a file that does not
        fit. Returns how many tokens that is."""
        found = saved.read(path, self._bound_to(model))
        pool = self._scheduler.pool
        known = pool.prefixes()
        fresh = [i for i, key in enumerate(found.digests) if key not in known]
        fresh = fresh[max(0, len(fresh) - pool.n_available) :]  # the most recent ones
        blocks = pool.adopt([found.digests[i] for i in fresh])
        self._runner.cache.wake()
        for mine_B, theirs_B in zip(self._runner.by_block(), found.kept_B, strict=True):
            mine_B[blocks] = theirs_B[fresh].to(mine_B.device)
        return len(blocks) * self._scheduler.block

    def _bound_to(self, model: str) -> dict[str, object]:
        """What saved prefixes must agree on: the weights, and all else that shapes an entry."""
        cfg = self.cfg
        return {
            "model": model,
            "weights": cfg.weights,
            "cache": cfg.cache,
            "deterministic": cfg.deterministic,
            "version": [__version__, torch.__version__],
            "layout": [[str(kept_B.dtype), *kept_B.shape[1:]] for kept_B in self._runner.by_block()],
        }

    def rest(self) -> None:
        """Give the cache's memory to others until the next request; only between requests."""
        if self.has_work:
            raise EngineError(f"an engine with work cannot rest; {self.n_running} run and {self.n_waiting} wait")
        self._scheduler.requeue()
        self._runner.rest()

    def _check(self, request: Request, n_new: int | None = None) -> None:
        n_prompt, vocab_size = len(request.prompt_ids), self.model.cfg.vocab_size
        n_new = request.params.max_tokens if n_new is None else n_new
        if not n_prompt:
            raise EngineError(f"request {request.id!r} has an empty prompt; it needs at least one token")
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
            wrong = next(token for token in request.prompt_ids if not 0 <= token < vocab_size)
            raise EngineError(f"request {request.id!r} has token {wrong} in its prompt; ids lie in 0..{vocab_size - 1}")
        wrong_bias = [token for token, _ in request.params.logit_bias if not 0 <= token < vocab_size]
        if wrong_bias:
            raise EngineError(f"request {request.id!r} biases token {wrong_bias[0]}; ids lie in 0..{vocab_size - 1}")
        if n_prompt + n_new > self.max_len:
            room = self.max_len - n_prompt
            fits = f"max_tokens={room} would fit" if room > 0 else f"prompts of {self.max_len - 1} tokens fit at most"
            raise PromptTooLong(
                f"request {request.id!r}: prompt of {n_prompt} tokens + max_tokens={n_new} = {n_prompt + n_new}"
                f" exceeds the context of {self.max_len} tokens; {fits}"
            )

    def end_thought(self, request_id: str) -> bool:
        """Close a request's thought with its next token ("answer now"); False when no thought of it is open here."""
        row = self._scheduler.find(request_id)
        if row is None or row.thought is None or not row.thought.is_open:
            return False
        row.thought.end_now(row.n_generated)
        return True

    def _advance(self) -> tuple[list[Token], list[Output]]:
        began = time.perf_counter()
        if not self.has_work:
            return [], []
        self._runner.cache.wake()
        sampled: list[Token] = []
        try:
            with torch.inference_mode(), self._kernels():
                sampled, hidden_ND = self._sample()
            result = self._book(sampled)
            if self.cfg.speculate and self._batch is not None:
                with torch.inference_mode(), self._kernels():
                    self._draft(hidden_ND)
        except BaseException as error:
            self._start_anew(error, sampled)
            raise
        self._steps += 1
        self._seconds += time.perf_counter() - began
        return result

    def _start_anew(self, error: BaseException, sampled: list[Token]) -> None:
        """After a step that failed the cache may be half written: every request keeps what it has and is read again.

        `suspects`: whom the error names; whoever was `sampled`, for what they got is lost; else the request that began
        last, since all others came through the steps before. A prefix that nobody waits for is given up.
        """
        running = [row for row in self._scheduler.running.values() if not row.is_warm]
        youngest = max(running, key=lambda row: row.arrival, default=None)
        self.suspects = tuple(dict.fromkeys(token.request_id for token in sampled))
        if isinstance(error, NoNumbers):
            self.suspects = error.request_ids
        elif not sampled and youngest is not None:
            self.suspects = (youngest.request.id,)
        self._scheduler.requeue()
        if not running:
            self._scheduler.warming.clear()
        self._runner.clear()

    def _kernels(self) -> AbstractContextManager[object]:
        return fixed_shapes() if self.cfg.deterministic else nullcontext()

    def _sample(self) -> tuple[list[Token], Tensor | None]:
        """One token after every place of the decoding rows, and the hidden states that they came of."""
        plan = self._scheduler.schedule()
        self._runner.apply(plan)
        self._scheduler.computed(plan.pieces)
        if not plan.decoding:
            self._batch = None
            return [], None
        stale = self._batch is None or plan.batch_changed or self._batch.is_once
        if stale or any(row.drafts for row in plan.decoding):
            keeps = self.cfg.return_kept
            self._batch = Batch(plan.decoding, self.run_seed, self.model.cfg.vocab_size, self._device, keeps=keeps)
        batch = self._batch
        assert batch is not None
        logits_NV, hidden_ND = self._runner.decode(batch)
        owners = [row for row, n in zip(batch.rows, batch.lengths, strict=True) for _ in range(n)]
        listed = {i: model_logprobs(logits_NV[i], owners[i].request.params.n_logprobs or 0) for i in batch.listed}
        errors = self._shape(logits_NV, batch)
        tokens_N, logprobs_N, kept = sample(logits_NV, batch.choice, batch.positions_N + 1)
        ids_N = tokens_N.to("cpu", non_blocking=True)  # there once the log-probabilities are: the host waits once
        logprobs = logprobs_N.tolist()
        tokens = [
            Token(row.request.id, token_id, logprob, None)
            for row, token_id, logprob in zip(owners, ids_N.tolist(), logprobs, strict=True)
        ]
        wrong = dict.fromkeys(token.request_id for token in tokens if token.logprob != token.logprob)
        if wrong:
            raise NoNumbers(tuple(wrong))
        for i, (logprobs_V, top) in listed.items():
            tokens[i].model_logprob, tokens[i].top = float(logprobs_V[tokens[i].token_id]), tuple(top)
        for i, ids in kept.items():
            tokens[i].kept = ids
        for i, error in errors.items():
            tokens[i] = _failed(owners[i], error)
        self._started = batch.starts_R.copy()
        if not batch.is_once:
            batch.advance(tokens_N)
        return tokens, hidden_ND

    def _shape(self, logits_NV: Tensor, batch: Batch) -> dict[int, EngineError]:
        """Do what the requests want done to their logits; the errors of those whose own mask failed, by place.

        A mask is asked about a draft only if it allows it: an answer that breaks the grammar has no next token.
        """
        errors = {}
        for i in batch.shaped:
            row = batch.rows[i]
            answer = row.answer
            for j in range(batch.lengths[i]):
                place = batch.firsts[i] + j
                forced = None if row.thought is None else row.thought.forced(row.n_generated + j)
                try:
                    shape(logits_NV[place], row.request, answer + row.drafts[:j], forced)
                except EngineError as error:
                    errors[place] = error
                    break
                if j < len(row.drafts) and logits_NV[place, row.drafts[j]] == -torch.inf:
                    break
        return errors

    def _book(self, sampled: list[Token]) -> tuple[list[Token], list[Output]]:
        """Give every row the tokens that its drafts were right about, and the one after."""
        tokens: list[Token] = []
        outputs: list[Output] = []
        batch = self._batch
        for i, row in enumerate([] if batch is None else batch.rows):
            assert batch is not None
            drafts, row.drafts = row.drafts, []
            self._drafted += len(drafts)
            for j in range(batch.lengths[i]):
                token = self._take(row, sampled[batch.firsts[i] + j])
                tokens.append(token)
                if token.finish_reason is not None or j == len(drafts) or drafts[j] != token.token_id:
                    self._accepted += j
                    break
            if token.error is None:
                self._scheduler.grown(row)
            if token.finish_reason is not None:
                token.routes_LTA = self._runner.routes(row)
                outputs.append(_output(row, token.finish_reason, token.routes_LTA, token.error))
                self._scheduler.remove(row.request.id)
        return tokens, outputs

    def _take(self, row: Row, token: Token) -> Token:
        """One more token for the row, with the reason if it is the last."""
        if token.error is None:
            if not row.logprobs:
                row.weight_version = self.weight_version
                self._found += row.n_found
            row.context.append(token.token_id)
            row.logprobs.append(token.logprob)
            if token.kept is not None:
                row.kept.append(token.kept)
            self._generated += 1
            if row.request.stop is None and row.loops is None and row.thought is None:
                token.finish_reason = plain_reason(row.request, token.token_id, row.n_generated)
            else:
                token = self._look(row, token)
        token.n_found = row.n_found
        return token

    def _look(self, row: Row, token: Token) -> Token:
        """What the row's whole answer says about its end, and that of its thought."""
        answer = row.answer
        if row.thought is not None:
            row.thought.push(answer)
        try:
            token.finish_reason = finish_reason(row.request, answer, row.loops)
        except EngineError as error:
            return _failed(row, error)
        return token

    def _draft(self, hidden_ND: Tensor | None) -> None:
        """Guesses for the next step, for the rows that go on."""
        assert self._batch is not None
        on = [(i, row) for i, row in enumerate(self._batch.rows) if row.slot >= 0 and row.request.id in self._scheduler]
        rows = [row for _, row in on]
        if self._lookup is not None:
            self._lookup.draft(rows)
        elif rows:
            assert self._runner.own_head is not None
            assert hidden_ND is not None
            n_new = [len(row.context) - 1 - int(self._started[i]) for i, row in on]
            firsts = [self._batch.firsts_read[i] for i, _ in on]
            places = [first + j for first, n in zip(firsts, n_new, strict=True) for j in range(n)]
            self._runner.own_head.draft(rows, hidden_ND[places], n_new)


def _failed(row: Row, error: EngineError) -> Token:
    """The end of a request that only itself is to blame for."""
    return Token(row.request.id, -1, math.nan, "error", error=str(error))


def _output(row: Row, reason: FinishReason, routes_LTA: Tensor | None, error: str | None = None) -> Output:
    return Output(
        row.request.id,
        row.answer,
        row.logprobs,
        reason,
        routes_LTA,
        row.weight_version,
        max(row.n_found, 0),
        error,
        row.kept or None,
    )


def _max_len(cfg: EngineConfig, model: Model) -> int:
    limit = model.cfg.max_len
    if cfg.max_len > limit > 0:
        raise ConfigError(f"engine.max_len={cfg.max_len} exceeds the model's max_len={limit}")
    if not (cfg.max_len or limit):
        raise ConfigError("engine.max_len=0 takes the model's, and this model names none; set engine.max_len")
    return cfg.max_len or limit


def _n_blocks(cfg: EngineConfig, max_len: int, block: int) -> int:
    per_request = -(-max_len // block)
    if not cfg.cache_tokens:
        return cfg.max_batch * per_request
    if cfg.cache_tokens < per_request * block:
        raise ConfigError(
            f"engine.cache_tokens={cfg.cache_tokens:,} does not hold one request of {max_len:,} tokens;"
            f" it must be at least {per_request * block:,}, or engine.max_len smaller"
        )
    return cfg.cache_tokens // block


def _device(model: Model) -> torch.device:
    """Where the model's weights are; a model without any computes on the CPU."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
