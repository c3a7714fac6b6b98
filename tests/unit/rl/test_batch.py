from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from sobre.rl.batch import microbatches, minibatches, to_batch, to_samples
from sobre.rl.config import PublishedConfig, RLConfig
from sobre.rl.types import Group, Sample


def test_numbers_of_an_answer_stand_where_its_tokens_are_predicted() -> None:
    samples = [
        Sample((1, 5, 6), (7, 8, 2), (-0.1, -0.2, -0.3), advantage=0.5, weight=1.0),
        Sample((1,), (9,), (-0.4,), advantage=-0.5, weight=0.25),
    ]
    batch = to_batch(samples, replay=False)
    assert batch.step.lengths == (5, 1)
    assert batch.step.tokens_N.tolist() == [1, 5, 6, 7, 8, 1]
    assert batch.targets_N.tolist() == [5, 6, 7, 8, 2, 9]
    assert batch.weights_N.tolist() == [0, 0, 1, 1, 1, 0.25]
    assert_close(batch.streams["advantage"], torch.tensor([0, 0, 0.5, 0.5, 0.5, -0.5]))
    assert_close(batch.streams["behaviour"], torch.tensor([0, 0, -0.1, -0.2, -0.3, -0.4]))
    assert batch.routes_LNA is None


def test_routes_follow_the_tokens_that_the_trainer_reads() -> None:
    routes = [torch.arange(2 * t * 2).reshape(2, t, 2).short() for t in (4, 2)]
    samples = [
        Sample((1, 5), (7, 8, 2), (-0.1,) * 3, 0.5, 1.0, routes[0]),
        Sample((1, 4), (9,), (-0.4,), -0.5, 1.0, routes[1]),
    ]
    batch = to_batch(samples, replay=True)
    assert batch.routes_LNA is not None
    assert batch.routes_LNA.shape == (2, 6, 2)
    assert batch.routes_LNA.dtype == torch.int64
    assert_close(batch.routes_LNA[:, 4:], routes[1].long())
    free = to_batch(samples, replay=False)
    assert free.routes_LNA is None
    assert_close(free.streams["engine_routes_LNA"], batch.routes_LNA)


def test_every_token_weighs_one_and_in_the_published_form_every_answer(make: SimpleNamespace) -> None:
    group = Group(make.problem(), (make.rollout(1.0, n_tokens=2), make.rollout(0.0, n_tokens=5)))
    ours = to_batch(to_samples([group], RLConfig()), replay=False)
    assert float(ours.weights_N.sum()) == 7
    published = to_batch(to_samples([group], RLConfig(algorithm=PublishedConfig())), replay=False)
    assert float(published.weights_N.sum()) == pytest.approx(2)
    assert published.weights_N.unique().tolist() == pytest.approx([0, 1 / 5, 1 / 2])


def test_a_cut_answer_counts_or_is_kept_out_as_the_recipe_says(make: SimpleNamespace) -> None:
    group = Group(make.problem(), (make.rollout(1.0), make.rollout(0.0, n_tokens=4, finished=False)))
    scored = to_samples([group], RLConfig(truncated="score"))
    assert [(sample.weight, sample.advantage) for sample in scored] == [(1, 0.5), (1, -0.5)]
    masked = to_samples([group], RLConfig(truncated="mask"))
    assert [(sample.weight, sample.advantage) for sample in masked] == [(1, 0.5), (0, -0.5)]
    assert [part for part in minibatches(masked, RLConfig(), "k")] == [[masked[0]]]


def test_a_part_that_teaches_nothing_is_empty(make: SimpleNamespace) -> None:
    flat = to_samples([make.group(1.0, 1.0)], RLConfig())
    assert minibatches(flat, RLConfig(n_epochs=2), "k") == [[], []]
    assert minibatches([], RLConfig(), "k") == to_samples([], RLConfig()) + [[]]
    pulled = RLConfig(algorithm=PublishedConfig(kl=0.1))
    assert sorted(map(id, minibatches(flat, pulled, "k")[0])) == sorted(map(id, flat))
    cut = Group(make.problem(), (make.rollout(0.0, finished=False), make.rollout(0.1, finished=False)))
    masked = RLConfig(truncated="mask")
    assert minibatches(to_samples([cut], masked), masked, "k") == [[]]


def test_every_pass_reads_each_sample_once_in_an_order_of_its_own(make: SimpleNamespace) -> None:
    samples = to_samples([make.group(1.0, 0.0, 1.0, 0.0) for _ in range(5)], RLConfig())
    cfg = RLConfig(n_minibatches=3, n_epochs=2)
    parts = minibatches(samples, cfg, "0/7")
    assert [len(part) for part in parts] == [7, 7, 6] * 2
    first, second = [id(s) for part in parts[:3] for s in part], [id(s) for part in parts[3:] for s in part]
    assert sorted(first) == sorted(second) == sorted(map(id, samples))
    assert first != second
    assert minibatches(samples, cfg, "0/7") == parts
    assert minibatches(samples, cfg, "0/8") != parts


def test_microbatches_hold_all_samples_within_the_limit(make: SimpleNamespace) -> None:
    samples = [Sample((1, 2), (3,) * n, (-1.0,) * n, 0.0, 1.0) for n in (1, 9, 3, 7, 5, 2)]
    parts = microbatches(samples, max_tokens=12)
    assert sorted(s.n_tokens for part in parts for s in part) == sorted(s.n_tokens for s in samples)
    assert all(sum(s.n_tokens for s in part) <= 12 for part in parts)
    assert [[s.n_tokens for s in part] for part in microbatches(samples[:2], max_tokens=1)] == [[10], [2]]
