"""Models that answer: a request goes in, an answer and its stream of tokens come out; what they used is counted."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sobre.errors import EngineError, SobreError
from sobre.ledger.prices import Price
from sobre.serve.answer import Answer, as_api_error
from sobre.serve.ask import Ask, Writer
from sobre.serve.bridge import Bridge, Stream
from sobre.serve.embeddings import Embedded, EmbeddingsRequest, inputs_of, passes
from sobre.serve.errors import ApiError, engine_stopped, invalid, stopping
from sobre.serve.keys import Account, too_many
from sobre.serve.metrics import Metrics
from sobre.serve.price import cost_basis
from sobre.serve.replicas import Replicas, ReplicaStream
from sobre.serve.upstream import UpstreamAnswer, UpstreamWriter


@dataclass
class Running:
    """An answer that is being written, and whose it is."""

    answer: Answer
    stream: Stream | ReplicaStream
    account: Account


@dataclass
class Service:
    """One model that answers."""

    model: str
    writer: Writer | UpstreamWriter
    bridge: Bridge | Replicas
    """Our engine's thread, or other engines at their addresses."""
    price: Price
    max_open: int
    """Choices that may run or wait at the same time."""
    metrics: Metrics
    about: dict[str, Any]
    """Its entry in /v1/models."""
    keep: Callable[[], None] = lambda: None
    """Called once its engine's thread has ended well: puts on disk what is to outlive the server."""
    draining: bool = False
    """The server is leaving: what runs goes on, nothing new begins."""
    running: dict[str, Running] = field(default_factory=dict)
    _warming: set[asyncio.Task[None]] = field(default_factory=set)
    """Next turns that are being rendered; kept, because the event loop does not."""

    def __post_init__(self) -> None:
        self.metrics.watch(self.model, lambda: self.bridge.n_open)
        bridge = self.bridge
        if isinstance(bridge, Bridge):
            self.metrics.watch_blocks(self.model, lambda: bridge.n_blocks_held)
            self.metrics.watch_drafts(self.model, lambda: bridge.drafts)

    async def begin(
        self, account: Account, n_choices: int, make: Callable[[], Ask], timeout_s: float | None
    ) -> Running:
        """Admit a request, render it off the event loop, and hand it to the engine; or say why not."""
        if self.draining:
            raise stopping()
        self._check_room(n_choices)
        account.admit()
        try:
            ask = await asyncio.to_thread(make)
            self._check_room(len(ask.requests))
            deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
            kind = Answer if ask.body is None else UpstreamAnswer
            running = Running(kind(ask, self.model, self.price, deadline=deadline), self._submit(ask), account)
        except BaseException as error:
            account.charge(0, 0.0)
            if isinstance(error, asyncio.CancelledError):
                self.metrics.left(self.model)
            raise
        self.running[ask.id] = running
        return running

    async def embed(self, account: Account, asked: EmbeddingsRequest) -> Embedded:
        """Admit a request for vectors, read its inputs a pass at a time between the engine's steps, and charge it."""
        writer, bridge = self.writer, self.bridge
        if not (isinstance(writer, Writer) and isinstance(bridge, Bridge)):
            raise invalid("The engine behind this server is asked for text alone.", "model", "unsupported")
        if self.draining:
            raise stopping()
        self._check_room(1)
        account.admit()
        n_tokens, seconds = 0, 0.0
        try:
            inputs = await asyncio.to_thread(
                inputs_of, asked, writer.tokenizer, writer.max_context, self.about["embedding_dimensions"]
            )
            vectors: list[list[float]] = [[]] * len(inputs)
            for batch in passes(inputs):
                made_RD, took_s = await bridge.embed([inputs[index] for index in batch], asked.pooling)
                seconds += took_s
                n_tokens += sum(len(inputs[index]) for index in batch)
                for index, vector in zip(batch, made_RD.tolist(), strict=True):
                    vectors[index] = vector
        except asyncio.CancelledError:
            self.metrics.left(self.model)
            raise
        except Exception as error:
            raise as_api_error(error) if bridge.failure is None else engine_stopped() from None
        finally:
            account.charge(n_tokens, self.price.usd(seconds))
            self.metrics.embedded(self.model, n_tokens, self.price.usd(seconds))
        return Embedded(vectors, n_tokens, self.price.usd(seconds), cost_basis(self.price, seconds))

    def end(self, running: Running, *, left: bool) -> None:
        """The client has what it gets: free the engine, count and charge."""
        answer = running.answer
        running.stream.close()
        answer.ended()
        self.running.pop(answer.id, None)
        running.account.charge(answer.n_prompt + answer.n_tokens, answer.cost_usd)
        self.metrics.answered(answer, left=left)
        if answer.ask.next_turn is not None and answer.reasons.get(0) == "stop" and not self.draining:
            warming = asyncio.create_task(
                self._warm(answer.ask.next_turn, answer.text, answer.ask.requests[0].cache_key)
            )
            self._warming.add(warming)
            warming.add_done_callback(self._warming.discard)

    @property
    def failure(self) -> BaseException | None:
        """Why nothing can be answered any more; None while it can."""
        return self.bridge.failure

    def start(self) -> None:
        """To be called inside the running event loop."""
        self.bridge.start()

    async def close(self) -> None:
        for warming in self._warming:
            warming.cancel()
        await self.bridge.close()
        if self.failure is None:
            await asyncio.to_thread(self.keep)

    async def _warm(self, next_turn: Callable[[str], tuple[int, ...]], text: str, cache_key: str) -> None:
        """Have the beginning of the chat's next turn computed while nobody asks for anything."""
        try:
            ids = await asyncio.to_thread(next_turn, text)
        except SobreError:  # what the model wrote has no place in its own layout: there is no such turn
            return
        if isinstance(self.writer, Writer) and isinstance(self.bridge, Bridge) and len(ids) < self.writer.max_context:
            self.bridge.warm(ids, cache_key)

    def answer_now(self, answer_id: str, account: Account) -> bool:
        """End the thoughts of an answer that runs here; False when it is over, 404 when it is somebody else's."""
        running = self.running[answer_id]
        if running.account is not account and not account.admin:
            raise ApiError(404, "There is no such answer.", code="not_found", param="id")
        return running.stream.end_thoughts()

    def _check_room(self, n_choices: int) -> None:
        n_open = self.bridge.n_open
        if n_open + n_choices > self.max_open:
            raise too_many(f"The server already holds {n_open} requests, of at most {self.max_open}. Try later.", 2.0)

    def _submit(self, ask: Ask) -> Stream | ReplicaStream:
        if isinstance(self.bridge, Replicas):
            assert ask.body is not None, "made by UpstreamWriter"
            return self.bridge.submit(ask.body, must_salt=ask.must_salt)
        try:
            return self.bridge.submit(ask.requests)
        except EngineError:
            raise engine_stopped() from None


class Services:
    """The models of one server, by name; the first is the one that is shown first."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.each = list(services)
        self._by_name = {service.model: service for service in services}

    def find(self, name: str) -> Service:
        """404 for a model that is not here."""
        service = self._by_name.get(name)
        if service is None:
            here = ", ".join(f"'{one}'" for one in self._by_name)
            raise ApiError(
                404,
                f"The model '{name[:100]}' does not exist; this server has {here}.",
                code="model_not_found",
                param="model",
            )
        return service

    @property
    def metrics(self) -> Metrics:
        return self.each[0].metrics

    def answer_now(self, answer_id: str, account: Account) -> bool:
        """End the thoughts of a running answer; False when it does not run."""
        service = next((one for one in self.each if answer_id in one.running), None)
        return False if service is None else service.answer_now(answer_id, account)

    def drain(self) -> None:
        """Let nothing new begin."""
        for service in self.each:
            service.draining = True

    def fail_all(self, error: Exception) -> None:
        """End what still runs."""
        for service in self.each:
            service.bridge.fail_all(error)
