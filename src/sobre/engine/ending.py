"""When an answer ends, and when its thought must: pure functions and small counters over token ids."""

from collections.abc import Sequence

from sobre.engine.request import FinishReason, Repetition, Request
from sobre.errors import EngineError


class Loops:
    """Finds out whether an answer ends in one passage written over and over; one comparison per period and token."""

    def __init__(self, cfg: Repetition) -> None:
        self.cfg = cfg
        self._matched = [0] * (cfg.max_period + 1)

    def push(self, answer: Sequence[int]) -> bool:
        """Look at the last token of the answer; True when the answer is going in circles."""
        last, n_answer, matched = answer[-1], len(answer), self._matched
        for period in range(1, min(self.cfg.max_period, n_answer - 1) + 1):
            matched[period] = matched[period] + 1 if answer[n_answer - 1 - period] == last else 0
        return any(
            run >= period * (self.cfg.times - 1) for period, run in enumerate(matched) if period and run >= period
        )


class ThoughtState:
    """Whether the thought of an answer is open, and from which length of the answer on it is closed by force."""

    def __init__(self, end_ids: tuple[int, ...], max_tokens: int | None) -> None:
        self.end_ids, self.limit = end_ids, max_tokens
        self.is_open = True

    def push(self, answer: Sequence[int]) -> None:
        """Look at the last token of the answer."""
        if self.is_open and tuple(answer[-len(self.end_ids) :]) == self.end_ids:
            self.is_open = False

    def end_now(self, n_answer: int) -> None:
        """Close it with the next token, unless it is being closed already."""
        if self.limit is None or self.limit > n_answer:
            self.limit = n_answer

    def forced(self, n_answer: int) -> int | None:
        """The token that must come next, if any."""
        if not self.is_open or self.limit is None or n_answer < self.limit:
            return None
        at = n_answer - self.limit
        return self.end_ids[at] if at < len(self.end_ids) else None


def finish_reason(request: Request, answer: Sequence[int], loops: Loops | None) -> FinishReason | None:
    """Why an answer ends with its last token, or None; raises EngineError when the request's `stop` fails."""
    plain = plain_reason(request, answer[-1], len(answer))
    if plain == "stop":
        return plain
    if request.stop is not None:
        try:
            if request.stop(answer):
                return "stop"
        except Exception as error:
            raise EngineError(f"the stop of request {request.id!r} failed: {type(error).__name__}: {error}") from error
    if plain is None and loops is not None and loops.push(answer):
        return "repetition"
    return plain


def plain_reason(request: Request, last: int, n_answer: int) -> FinishReason | None:
    """The same for a request without `stop` and repetition stop, which need the whole answer."""
    if last in request.params.stop_ids:
        return "stop"
    return "length" if n_answer == request.params.max_tokens else None
