"""The source of batches in reinforcement learning: draw problems, roll out, score, and hand the trainer its samples.

It meets the same seam as the sources of pretraining and fine-tuning (`train.loop.Source`). Its state is small JSON:
pass rates, whether routes are replayed, with several optimizer steps per set of rollouts the samples to come, and the
answers that go on after an update.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sobre.engine.engine import Engine
from sobre.engine.request import Request
from sobre.errors import RunError
from sobre.models.decoder import Decoder
from sobre.rl import curriculum, stragglers
from sobre.rl.barren import why_barren
from sobre.rl.batch import microbatches, minibatches, to_batch, to_samples
from sobre.rl.config import RLConfig
from sobre.rl.grading import Grader
from sobre.rl.losses import log_probs, policy_loss
from sobre.rl.mismatch import Mismatch, replays, total
from sobre.rl.remote_engine import RemoteEngine
from sobre.rl.rollout import Rollouts, collect, first_seed, to_request, to_requests
from sobre.rl.shared_engine import SharedEngine
from sobre.rl.stragglers import Drawn, UnderWay
from sobre.rl.types import Sample
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.batch import Batch
from sobre.train.loop import Feed
from sobre.train.losses import LossFn
from sobre.train.routes import rerouted
from sobre.train.step import StepInfo


class ReferenceStore(Protocol):
    def keep(self, step: int, weights: dict[str, Tensor]) -> None: ...
    def fetch(self, step: int) -> dict[str, Tensor]: ...


@dataclass
class RolloutSource:
    """Batches that the model itself writes. Train it with `source.loss_fn`; `cfg.rebalance` moves the router biases."""

    engine: Engine | SharedEngine | RemoteEngine
    model: Decoder
    """What is trained; where that is divided, a whole model that has its weights after each rollout."""
    tokenizer: Tokenizer
    cfg: RLConfig
    tasks: TasksConfig
    seed: int
    forward_flops: Callable[[Batch], float]
    """Model FLOPs of one forward pass, for the passes that no training step counts."""
    reference: Decoder | None = None
    """The model that the stage started from; needed when the algorithm's kl is above 0."""
    sets: curriculum.Sets = field(default_factory=dict)
    """Training problems of files, beside the generated tasks."""
    general: Sequence[Problem] = ()
    """Questions without a right answer, which `grader` grades."""
    grader: Grader | None = None
    pass_rates: dict[str, float] = field(default_factory=dict)
    is_replaying: bool = False
    references: ReferenceStore | None = None
    """Keeps the references of `reference_every` for a run that goes on after a kill."""
    reference_step: int = 0
    """Step after which the reference was the model; 0: it is the one that the stage started from."""
    barren: int = 0
    """Steps in a row in which no group told its answers apart."""
    pending: list[list[Sample]] = field(default_factory=list)
    """Samples of the optimizer steps still to come from the last rollouts."""
    mismatch: Mismatch = field(default_factory=Mismatch)
    gather: Callable[[Mismatch], Sequence[Mismatch]] = lambda found: [found]
    """What each process saw, in every process: all must decide alike."""
    rests: bool = False
    """The engine gives its cache's memory back after each rollout."""
    under_way: tuple[UnderWay, ...] = ()
    """Groups whose answers go on after the update (`cfg.stragglers`)."""
    _drawn_at: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """By step: the pass rates by which groups were drawn that are still under way."""
    _last: tuple[int, int, Rollouts] | None = None
    _ahead: dict[int, list[Problem]] = field(default_factory=dict)
    """By step: problems that the samplers work on already."""

    def __post_init__(self) -> None:
        assert self.reference is not None or not self.cfg.algorithm.kl, "a KL term needs the reference model"
        self.is_replaying = replays(self.cfg, self.is_replaying, None)

    @property
    def loss_fn(self) -> LossFn:
        return policy_loss(self.cfg, self._watch)

    def feed(self, step: int) -> Feed:
        """The batches of one optimizer step; new rollouts when the last ones are used up."""
        self.mismatch = Mismatch(active=not self.pending)
        flops, metrics = 0.0, {}
        if not self.pending:
            rollouts = self._roll_out(step)
            flops, metrics = rollouts.flops, rollouts.metrics()
            self.mismatch.active = not rollouts.is_stale
            self.pass_rates = curriculum.updated(self.pass_rates, rollouts.verified, self.cfg.curriculum)
            self._begin_ahead(step)
            self.barren = 0 if any(not group.is_flat for group in rollouts.all) else self.barren + 1
            if self.cfg.give_up_after and self.barren >= self.cfg.give_up_after:
                raise RunError(why_barren(rollouts, self.pass_rates, self.barren))
            samples = to_samples(rollouts.groups, self.cfg)
            if self.cfg.max_correction and self.cfg.n_minibatches * self.cfg.n_epochs > 1:
                samples, passed = self._with_old(samples)
                flops += passed
            self.pending = minibatches(samples, self.cfg, f"{self.seed}/{step}")
        parts = microbatches(self.pending.pop(0), self.cfg.micro_tokens)
        batches = [to_batch(part, replay=self.is_replaying) for part in parts]
        if self.reference is not None:
            batches = [self._with_reference(batch, self.reference) for batch in batches]
            flops += sum(map(self.forward_flops, batches))
        if self.is_replaying and self.mismatch.active and batches:
            flops += self._probe_routes(batches[0])
        return Feed(batches, flops, {**metrics, "replay": self.is_replaying})

    def prepare(self, step: int, device: torch.device) -> None:
        """Nothing: the weights that answer are not there yet."""

    def updated(self, step: int, info: StepInfo) -> Mapping[str, Any]:
        """The weights have changed: the engine forgets what it cached, and the next step may replay routes."""
        self.engine.weights_changed()
        if self.cfg.reference_every and step % self.cfg.reference_every == 0:
            assert self.reference is not None, "the config asks for a KL"
            assert self.references is not None, "a reference that changes is kept"
            self.reference.load_state_dict(self.model.state_dict())
            self.references.keep(step, self.reference.state_dict())
            self.reference_step = step
        self.mismatch = total(self.gather(self.mismatch.settled()))
        if self.mismatch.active and info.rerouted is not None:
            self.mismatch.route_share = info.rerouted
        self.is_replaying = replays(self.cfg, self.is_replaying, self.mismatch.route_share)
        return self.mismatch.metrics()

    def state(self) -> dict[str, Any]:
        """Everything that the next feed depends on, as JSON data."""
        return {
            "pass_rates": dict(self.pass_rates),
            "is_replaying": self.is_replaying,
            "barren": self.barren,
            "reference_step": self.reference_step,
            "pending": [[_encode(sample) for sample in part] for part in self.pending],
            "under_way": stragglers.encode(self.under_way, self.engine.weight_version) if self.under_way else [],
            "drawn_at": {str(step): dict(rates) for step, rates in self._drawn_at.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back, or on, to a state."""
        self.pass_rates = dict(state["pass_rates"])
        self.is_replaying = state["is_replaying"]
        self.barren = state["barren"]
        if state["reference_step"] != self.reference_step:
            assert self.reference is not None, "a state with a reference belongs to a config with a KL"
            assert self.references is not None, "a reference that changes is kept"
            self.reference.load_state_dict(self.references.fetch(state["reference_step"]))
            self.reference_step = state["reference_step"]
        self.pending = [[_decode(sample) for sample in part] for part in state["pending"]]
        self._drawn_at = {int(step): dict(rates) for step, rates in state["drawn_at"].items()}
        version = self.engine.weight_version if state["under_way"] else 0
        self.under_way = tuple(stragglers.decode(state["under_way"], version, self._ask, self._drawn))
        self._ahead = {}  # a new process asks anew for what was under way, and of newer weights

    def _roll_out(self, step: int) -> Rollouts:
        """Sample, or return what was sampled for this very step and weights (the dry run asks first)."""
        version = self.engine.weight_version
        if self._last is not None and self._last[:2] == (step, version):
            self._leave(self._last[2].left, step)
            return self._last[2]

        def draw(round_: int, n: int) -> list[Problem]:
            known = self._ahead.pop(step, None) if round_ == 0 else None
            return known or self._draw(step, round_, n)

        rollouts = collect(
            self.engine,
            self.tokenizer,
            draw,
            self.cfg,
            self.tasks,
            seed=step,
            grader=self.grader,
            carried=self.under_way,
        )
        self._leave(rollouts.left, step)
        self._last = (step, version, rollouts)
        if self.rests:
            assert not isinstance(self.engine, RemoteEngine), "samplers apart keep what they have"
            self.engine.rest()
        return rollouts

    def _leave(self, left: tuple[UnderWay, ...], step: int) -> None:
        """Groups go on after this step; what they were drawn by is kept as long as they do."""
        known = {**self._drawn_at, step: self.pass_rates}
        self.under_way = left
        self._drawn_at = {group.drawn.step: known[group.drawn.step] for group in left}

    def _drawn(self, which: Drawn) -> Problem:
        """A problem that was drawn before."""
        rates = self._drawn_at[which.step]
        return self._draw(which.step, which.round, which.n, rates)[which.place]

    def _ask(self, seed: int, prompt: tuple[int, ...]) -> Request:
        return to_request(self.tokenizer, self.cfg, seed, prompt)

    def _draw(self, step: int, round_: int, n: int, rates: Mapping[str, float] | None = None) -> list[Problem]:
        """`n` problems by these pass rates, or by the present ones."""
        key = f"{self.seed}/{step}/{round_}"
        names, langs = self.tasks.names, self.tasks.langs
        asked = general_questions(self.general, round(n * self.cfg.general.share), key)
        left = n - len(asked)
        rates = self.pass_rates if rates is None else rates
        return curriculum.draw(rates, names, langs, self.cfg.curriculum, left, key, self.sets) + asked

    def _begin_ahead(self, step: int) -> None:
        """Let the samplers begin the sets of the next `staleness` steps, while this one is learned from."""
        for later in range(step + 1, step + 1 + self.cfg.samplers.staleness):
            if later not in self._ahead:
                assert isinstance(self.engine, RemoteEngine), "staleness needs samplers apart"
                self._ahead[later] = self._draw(later, 0, self.cfg.n_prompts)
                seed = first_seed(self.cfg, later, 0)
                self.engine.begin(to_requests(self.tokenizer, self._ahead[later], self.cfg, seed=seed))

    def _watch(self, *seen: Any) -> None:
        self.mismatch.see(*seen)

    def _with_reference(self, batch: Batch, reference: Decoder) -> Batch:
        logp_N = self._scored(reference, batch)
        places = batch.weights_N.nonzero().squeeze(1)
        reference_N = torch.zeros_like(batch.weights_N).index_copy(0, places, logp_N)
        return replace(batch, streams={**batch.streams, "reference": reference_N})

    def _with_old(self, samples: Sequence[Sample]) -> tuple[list[Sample], float]:
        """Give every trained sample the trainer's own log-probabilities before the update; return the FLOPs too."""
        found, flops = [sample for sample in samples if not sample.weight], 0.0
        for part in microbatches([sample for sample in samples if sample.weight], self.cfg.micro_tokens):
            batch = to_batch(part, replay=self.is_replaying)
            logp_N = self._scored(self.model, batch)
            logps = iter(logp_N.tolist())
            for sample in part:  # tokens that another wrote have no weight, and were not scored
                old = tuple(next(logps) if weight else 0.0 for weight in sample.weights)
                found.append(replace(sample, old=old))
            flops += self.forward_flops(batch)
        return found, flops

    @torch.no_grad()
    def _scored(self, model: Decoder, batch: Batch) -> Tensor:
        """Log-probabilities of the trained tokens under a model, with the routes that the trainer would take; on the
        host, like the batch."""
        batch = batch.to(model.device)
        routes_LNA = batch.routes_LNA if model is self.model else None
        hidden_ND, pick = model(batch.step, routes_LNA=routes_LNA).hidden_ND, batch.first.pick
        kept_NB = pick(batch.streams["kept_NB"]) if "kept_NB" in batch.streams else None
        return log_probs(model, pick(hidden_ND), pick(batch.targets_N), self.cfg.temperature, kept_NB).cpu()

    @torch.no_grad()
    def _probe_routes(self, batch: Batch) -> float:
        """Under replay, measure on one batch what the trainer would have chosen; return the FLOPs."""
        there = replace(batch.to(self.model.device), routes_LNA=None)
        elsewhere_N = rerouted(self.model(there.step).routes, there)
        self.mismatch.route_share = None if elsewhere_N is None else float(elsewhere_N.float().mean())
        return self.forward_flops(batch)


def general_questions(known: Sequence[Problem], n: int, key: str) -> list[Problem]:
    """`n` of the general questions, none twice as long as there are others; none where there are none."""
    rng, found = random.Random(f"general/{key}"), list[Problem]()
    while known and len(found) < n:
        found += rng.sample(known, min(n - len(found), len(known)))
    return found


def _encode(sample: Sample) -> dict[str, Any]:
    routes = None if sample.routes_LTA is None else sample.routes_LTA.tolist()
    return {
        "prompt_ids": list(sample.prompt_ids),
        "response_ids": list(sample.response_ids),
        "logprobs": list(sample.logprobs),
        "advantage": sample.advantage,
        "weight": sample.weight,
        "routes_LTA": routes,
        "scale": sample.scale,
        "old": None if sample.old is None else list(sample.old),
        "own": None if sample.own is None else list(sample.own),
        "kept": None if sample.kept is None else [ids.tolist() for ids in sample.kept],
    }


def _decode(data: Mapping[str, Any]) -> Sample:
    lists: Sequence[str] = ("prompt_ids", "response_ids", "logprobs")
    routes: Tensor | None = None if data["routes_LTA"] is None else torch.tensor(data["routes_LTA"])
    old = None if data["old"] is None else tuple(data["old"])
    own = None if data["own"] is None else tuple(data["own"])
    kept = None if data["kept"] is None else tuple(np.array(ids, np.int32) for ids in data["kept"])
    told = {"routes_LTA": routes, "old": old, "own": own, "kept": kept}
    return Sample(**{**data, **{name: tuple(data[name]) for name in lists}, **told})
