"""Pipeline schedules, played out: who computes what when, and who waits.

A micro-batch goes forward (F) through all stages and back (B, gradients of inputs; W, gradients of weights, which
nobody waits for). A schedule is the order of work on each chip; `simulate` plays it with the dependencies between
stages and gives the timeline. `bubble` is the idle time in closed form, which the played schedules are tested against:

    1F1B         (P-1)(F+B)            arXiv 1806.03377      B without a W of its own holds both gradients
    interleaved  (P-1)(F+B)/V          arXiv 2104.04473      V stages on a chip
    ZB1P         (P-1)(F+B-2W)         arXiv 2401.10241
    DualPipe     (P/2-1)(F&B+B-3W)     arXiv 2412.19437, 3.2.1; fed from both ends
    DualPipeV    (P-1)(F&B+B-3W)       the same folded into a V: P chips are 2P stages, each half as long
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sobre.errors import ConfigError
from sobre.plan.layout import ScheduleName


@dataclass(frozen=True)
class Work:
    """One piece: `kind` is F, B (inputs), W (weights) or D (both gradients at once)."""

    kind: str
    micro: int
    stage: int
    direction: int = 0
    """1 for micro-batches that enter DualPipe at the other end."""


Order = list[list[tuple[Work, ...]]]
"""What each chip does, in turn; pieces in one tuple are done together and end together, as DualPipe's F&B."""


@dataclass(frozen=True)
class Placed:
    """A piece with its time."""

    chip: int
    work: Work
    start: float
    end: float


@dataclass(frozen=True)
class Durations:
    """Seconds of a micro-batch in all stages that a chip holds."""

    forward: float = 1.0
    backward: float = 1.0
    weight: float = 1.0


def bubble(schedule: ScheduleName, stages: int, durations: Durations, chunks: int = 1) -> float:
    """Idle seconds of a chip in one step."""
    f, b, w = durations.forward, durations.backward + durations.weight, durations.weight
    if stages == 1:
        return 0.0
    if schedule == "1f1b":
        return (stages - 1) * (f + b)
    if schedule == "interleaved":
        return (stages - 1) * (f + b) / chunks
    if schedule == "zb1p":
        return (stages - 1) * (f + b - 2 * w)
    if schedule == "dualpipe":
        return (stages / 2 - 1) * (f + b + b - 3 * w)
    return (stages - 1) * (f + b + b - 3 * w) / 2


def unplayable(schedule: ScheduleName, stages: int, micro: int) -> str:
    """Why a schedule cannot be played on so many chips with so many micro-batches, and what would do; "" if it can."""
    if stages == 1:
        return ""
    if schedule == "zb1p" and micro < stages:
        return f"zb1p over {stages} stages needs {stages} micro-batches or more, not {micro}"
    if schedule == "interleaved" and micro % stages:
        return f"the interleaved schedule needs a multiple of {stages} micro-batches, not {micro}"
    if schedule == "dualpipe" and stages % 2:
        return f"DualPipe needs an even number of stages, not {stages}"
    if schedule == "dualpipe" and (micro % 2 or micro < 2 * stages):
        return f"DualPipe over {stages} stages needs an even number of micro-batches, {2 * stages} or more, not {micro}"
    if schedule == "dualpipev" and micro < 2 * stages:
        return f"DualPipeV over {stages} chips needs {2 * stages} micro-batches or more, not {micro}"
    return ""


def order(schedule: ScheduleName, chips: int, micro: int, chunks: int = 1) -> Order:
    """The pieces of each chip, in the order in which it does them."""
    if chips < 1 or micro < 1 or chunks < 1:
        raise ConfigError(f"{chips} stages, {micro} micro-batches and {chunks} chunks must each be 1 or more")
    if schedule == "dualpipe" and chips == 1:
        raise ConfigError("DualPipe needs two stages or more")
    if why := unplayable(schedule, chips, micro):
        raise ConfigError(why)
    if schedule in ("1f1b", "zb1p"):
        return [_alone(_one_f_one_b(rank, chips, micro, split=schedule == "zb1p")) for rank in range(chips)]
    if schedule == "interleaved":
        return [_alone(_interleaved(rank, chips, micro, chunks)) for rank in range(chips)]
    if schedule == "dualpipe":
        return [list(_dualpipe(rank, chips, micro)) for rank in range(chips)]
    return [list(_dualpipe_v(rank, chips, micro)) for rank in range(chips)]


def simulate(work: Order, stages: int, durations: Durations, per_chip: int = 1) -> list[Placed]:
    """Play the schedule; each chip starts its next piece as soon as what it needs is there.

    `stages` is the number of stages of the model and `per_chip` how many of them a chip holds.
    """
    share = {
        "F": durations.forward / per_chip,
        "B": durations.backward / per_chip,
        "W": durations.weight / per_chip,
        "D": (durations.backward + durations.weight) / per_chip,
    }
    done: dict[tuple[str, int, int, int], float] = {}
    clock, at, placed = [0.0] * len(work), [0] * len(work), list[Placed]()
    waiting = True
    while waiting:
        waiting, moved = False, False
        for chip, turns in enumerate(work):
            while at[chip] < len(turns):
                together = turns[at[chip]]
                needs = [need for piece in together for need in _needs(piece, stages)]
                if any(need not in done for need in needs):
                    waiting = True
                    break
                start = max([clock[chip], *(done[need] for need in needs)])
                clock[chip] = start + sum(share[piece.kind] for piece in together)
                for piece in together:
                    kind = "B" if piece.kind == "D" else piece.kind
                    done[kind, piece.micro, piece.stage, piece.direction] = clock[chip]
                    placed.append(Placed(chip, piece, start, start + share[piece.kind]))
                    start += share[piece.kind]
                at[chip] += 1
                moved = True
        if waiting and not moved:
            raise ConfigError("the schedule waits for itself")
    return placed


def idle(placed: list[Placed], chip: int) -> float:
    """Seconds that a chip waits between start and end of the step."""
    return max(p.end for p in placed) - sum(p.end - p.start for p in placed if p.chip == chip)


def _alone(pieces: list[Work]) -> list[tuple[Work, ...]]:
    return [(piece,) for piece in pieces]


def _needs(piece: Work, stages: int) -> list[tuple[str, int, int, int]]:
    key = (piece.micro, piece.stage, piece.direction)
    step = -1 if piece.direction else 1
    first, last = (stages - 1, 0) if piece.direction else (0, stages - 1)
    if piece.kind == "F":
        return [] if piece.stage == first else [("F", piece.micro, piece.stage - step, piece.direction)]
    if piece.kind == "W":
        return [("B", *key)]
    after = [] if piece.stage == last else [("B", piece.micro, piece.stage + step, piece.direction)]
    return [("F", *key), *after]


def _one_f_one_b(rank: int, chips: int, micro: int, *, split: bool) -> list[Work]:
    """Warm up with a forward for each stage behind, then one forward, one backward; ZB1P lets weights wait so long."""
    warm = min(chips - rank - 1, micro)
    found = [Work("F", i, rank) for i in range(warm)]
    for i in range(micro):
        if warm + i < micro:
            found.append(Work("F", warm + i, rank))
        found.append(Work("B" if split else "D", i, rank))
        if split and i >= rank:
            found.append(Work("W", i - rank, rank))
    return found + [Work("W", i, rank) for i in range(micro - rank, micro) if split]


def _interleaved(rank: int, chips: int, micro: int, chunks: int) -> list[Work]:
    """Groups of `chips` micro-batches go through one chunk after the other."""
    total = micro * chunks

    def piece(index: int, forward: bool) -> Work:
        group, inside = divmod(index, chips * chunks)
        chunk = inside // chips
        micro_batch = group * chips + inside % chips
        chunk = chunk if forward else chunks - 1 - chunk
        return Work("F" if forward else "D", micro_batch, chunk * chips + rank)

    warm = min(total, (chips - rank - 1) * 2 + (chunks - 1) * chips)
    found = [piece(i, True) for i in range(warm)]
    for i in range(total):
        if warm + i < total:
            found.append(piece(warm + i, True))
        found.append(piece(i, False))
    return found


class _Feeder:
    """Hands out the pieces of two streams of micro-batches in order; weights wait in a queue."""

    def __init__(self, lanes: tuple[tuple[int, int], tuple[int, int]]) -> None:
        self.lanes = lanes  # (stage, direction) of stream 0 and of stream 1
        self.forwards, self.backwards = [0, 0], [0, 0]
        self.queue: list[Work] = []

    def forward(self, stream: int) -> Work:
        stage, direction = self.lanes[stream]
        self.forwards[stream] += 1
        return Work("F", self.forwards[stream] - 1, stage, direction)

    def backward(self, stream: int, *, split: bool = False) -> Work:
        stage, direction = self.lanes[stream]
        micro = self.backwards[stream]
        self.backwards[stream] += 1
        if split:
            self.queue.append(Work("W", micro, stage, direction))
        return Work("B" if split else "D", micro, stage, direction)

    def weight(self) -> Work:
        return self.queue.pop(0)


def _dualpipe(rank: int, chips: int, micro: int) -> Iterator[tuple[Work, ...]]:
    """Both ends feed micro-batches; a chip's own stream is the one that enters at the nearer end."""
    half = min(rank, chips - 1 - rank)
    mirrored = rank >= chips // 2
    own, other = (rank, int(mirrored)), (rank, int(not mirrored))
    return _eight_steps(_Feeder((own, other)), half, chips // 2, micro // 2 - chips + half + 1)


def _dualpipe_v(rank: int, chips: int, micro: int) -> Iterator[tuple[Work, ...]]:
    """A chip holds a stage of the way down and one of the way up; the streams are the two ways."""
    return _eight_steps(_Feeder(((rank, 0), (2 * chips - 1 - rank, 0))), rank, chips, micro - 2 * chips + rank + 1)


def _eight_steps(feed: _Feeder, rank: int, ranks: int, main: int) -> Iterator[tuple[Work, ...]]:
    """The eight phases of DualPipe's released code; `rank` counts from the end that feeds."""
    behind = ranks - rank - 1
    for _ in range(2 * behind):
        yield (feed.forward(0),)
    for _ in range(rank + 1):
        yield (feed.forward(0),)
        yield (feed.forward(1),)
    for _ in range(behind):
        yield (feed.backward(1, split=True),)
        yield (feed.weight(),)
        yield (feed.forward(1),)
    for turn in range(main):
        if turn == 0 and behind == 0:  # the chip in the middle has nothing yet to do a backward pass beside
            yield (feed.forward(0),)
            yield (feed.backward(1),)
        else:
            yield feed.forward(0), feed.backward(1)
        yield feed.forward(1), feed.backward(0)
    for _ in range(behind):
        yield (feed.backward(1),)
        yield feed.forward(1), feed.backward(0)
    split = False
    for i in range(rank + 1):
        split = split or (i == (rank + 1) // 2 and rank % 2 == 1)
        yield (feed.backward(1, split=split),)
        split = split or (i == (rank + 1) // 2 and rank % 2 == 0)
        yield (feed.backward(0, split=split),)
    for _ in range(behind):
        yield (feed.weight(),)
        yield (feed.backward(0, split=True),)
    while feed.queue:
        yield (feed.weight(),)
