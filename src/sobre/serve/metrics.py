"""What an operator watches, in Prometheus's format. Names end as vLLM's do, so that dashboards carry over."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sobre.serve.answer import Answer

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """The series of one server; no label holds a key or a text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("prefix_cache_hits", "Tokens of prompts that were in the cache")
        self._written = self._counter("generation_tokens", "Tokens written, thoughts included")
        self._thought = self._counter("thinking_tokens", "Tokens of thoughts")
        self._usd = self._counter("cost_usd", "Dollars of machine time that answers took")
        self._finished = self._counter("request_success", "Choices that ended by themselves", "finished_reason")
        self._left = self._counter("request_cancelled", "Requests whose client left before the end")
        self._http = Counter("sobre_http_requests", "Answers by status", ["status"], registry=self.registry)
        self._first = self._histogram("time_to_first_token_seconds", "From the request to its first token")
        self._between = self._histogram("inter_token_latency_seconds", "Mean time between two tokens of a request")
        self._whole = self._histogram("e2e_request_latency_seconds", "From the request to its last token")
        self._open = Gauge("sobre_num_requests_open", "Choices open", ["model_name"], registry=self.registry)

        self._blocks = Gauge(
            "sobre_kv_cache_blocks_held", "Blocks of running requests", ["model_name"], registry=self.registry
        )
        self._drafted = self._counted("num_draft_tokens", "Tokens guessed ahead and checked")
        self._accepted = self._counted("num_accepted_tokens", "Of these, right")

    def watch(self, model: str, n_open: Callable[[], int]) -> None:
        """Show how many choices of a model run or wait."""
        self._open.labels(model_name=model).set_function(n_open)

    def watch_blocks(self, model: str, n_held: Callable[[], int]) -> None:
        """Show how many blocks of a model's cache running requests hold."""
        self._blocks.labels(model_name=model).set_function(n_held)

    def watch_drafts(self, model: str, drafts: Callable[[], tuple[int, int]]) -> None:
        """Show how many tokens a model's engine guessed ahead, and how many were right."""
        self._drafted.labels(model_name=model).set_function(lambda: drafts()[0])
        self._accepted.labels(model_name=model).set_function(lambda: drafts()[1])

    def answered(self, answer: Answer, *, left: bool) -> None:
        """An answer is over."""
        model = {"model_name": answer.model}
        self._prompt.labels(**model).inc(answer.n_prompt)
        self._cached.labels(**model).inc(answer.n_cached)
        self._written.labels(**model).inc(answer.n_tokens)
        self._thought.labels(**model).inc(answer.n_reasoning)
        self._usd.labels(**model).inc(answer.cost_usd)
        if left:
            self.left(answer.model)
        for reason in answer.reasons.values():
            self._finished.labels(**model, finished_reason=reason).inc()
        if answer.first_token_s is not None:
            self._first.labels(**model).observe(answer.first_token_s)
            self._whole.labels(**model).observe(answer.elapsed_s)
            if answer.n_tokens > 1:
                between = (answer.elapsed_s - answer.first_token_s) / (answer.n_tokens - 1)
                self._between.labels(**model).observe(between)

    def left(self, model: str) -> None:
        """A client left before the end of what it had asked for."""
        self._left.labels(model_name=model).inc()

    def embedded(self, model: str, n_tokens: int, cost_usd: float) -> None:
        """Texts were read for their vectors."""
        self._prompt.labels(model_name=model).inc(n_tokens)
        self._usd.labels(model_name=model).inc(cost_usd)

    def responded(self, status: int) -> None:
        """A request of any kind is over."""
        self._http.labels(status=str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counted(self, name: str, about: str) -> Gauge:
        """A count that the engine keeps itself."""
        return Gauge(f"sobre_spec_decode_{name}_total", about, ["model_name"], registry=self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"sobre_{name}", about, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(f"sobre_{name}", about, ["model_name"], buckets=SECONDS, registry=self.registry)
