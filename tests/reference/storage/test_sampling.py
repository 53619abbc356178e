"""Samples are distributed by weight, without loss or repetition, and independently of the number of ranks."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.errors import InputError
from harness.reference.storage.sampling.permutations import hash_key, permute_indices
from harness.reference.storage.sampling.rank_assignment import (
    assign_ranks,
    balance_costs,
    compute_imbalance,
    compute_loss_weights,
    compute_weights,
    pack_batches,
    round_shares,
)
from harness.reference.storage.sampling.sampler import MixtureSampler, SampleIndices, SamplingSpec

# Structures of the sixteen datasets, in millions.
PAPER_SIZES = (4.5, 5.0, 1.58, 133.9, 9.8, 7.8, 38.0, 101.0, 100.0, 60.0, 40.0, 6.57, 12.7, 33.5, 4.2, 9.6)
COUNTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=20)
SMALL_COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(tuple)
COSTS = st.lists(st.integers(0, 300), min_size=1, max_size=60)


def list_pairs(indices: SampleIndices) -> list[tuple[int, int]]:
    return list(zip(indices.dataset.tolist(), indices.index.tolist(), strict=True))


def draw_all(sampler: MixtureSampler, steps: int) -> list[tuple[int, int]]:
    """Return the samples that all ranks draw, in order."""
    return [p for k in range(steps) for r in range(sampler.ranks) for p in list_pairs(sampler.select_batch(k, r))]


def shuffle(count: int, key: int) -> np.ndarray:
    return permute_indices(np.arange(count), np.full(count, count), np.repeat(hash_key(key), count))


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(-(2**62), 2**62))
def test_shuffle_is_a_permutation(count: int, key: int) -> None:
    assert np.array_equal(np.sort(shuffle(count, key)), np.arange(count))


def test_large_shuffle_needs_no_array() -> None:
    count = np.full(1000, 544_000_000)
    result = permute_indices(np.arange(1000) * 1000, count, np.repeat(hash_key(3), 1000))
    assert len(set(result.tolist())) == 1000
    assert result.min() >= 0
    assert abs(result.mean() / 544e6 - 0.5) < 4 / math.sqrt(12 * 1000)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_permutations_are_equally_likely(count: int) -> None:
    """The chi-square statistic is below its mean plus four standard deviations."""
    trials = 24_000
    keys = np.repeat(hash_key(11, np.arange(trials)), count)
    orders = permute_indices(np.tile(np.arange(count), trials), np.full(len(keys), count), keys).reshape(trials, count)
    counts = Counter(map(tuple, orders.tolist()))
    expected = trials / math.factorial(count)
    chi2 = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(count)))
    degrees_of_freedom = math.factorial(count) - 1
    assert chi2 < degrees_of_freedom + 4 * math.sqrt(2 * degrees_of_freedom)


@pytest.mark.parametrize("count", [17, 300, 2000])
def test_positions_and_distances_of_neighbours_are_uniform(count: int) -> None:
    """The position of one index and the distance of two neighbours are checked over many keys."""
    trials = 200_000 // count
    keys = np.repeat(hash_key(5, np.arange(trials)), count)
    orders = permute_indices(np.tile(np.arange(count), trials), np.full(len(keys), count), keys).reshape(trials, count)
    distances = np.bincount(((orders[:, 1:] - orders[:, :-1]) % count).ravel(), minlength=count)[1:]
    positions = np.bincount(orders[:, count // 3] * 16 // count, minlength=16)
    bins = np.bincount(np.arange(count) * 16 // count) * trials / count
    for counts, expected in ((distances, np.full(count - 1, distances.mean())), (positions, bins)):
        chi2, degrees_of_freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
        assert abs(chi2 - degrees_of_freedom) < 5 * math.sqrt(2 * degrees_of_freedom)


@settings(deadline=None)
@given(COUNTS, st.integers(0, 5000))
def test_numbers_of_ranks_add_up_and_follow_the_sizes(counts: list[int], spare: int) -> None:
    ranks = len(counts) + spare
    ranks_per_dataset = assign_ranks(counts, ranks).ranks_per_dataset
    assert sum(ranks_per_dataset) == ranks
    assert min(ranks_per_dataset) >= 1
    quotas = [c / sum(counts) * spare for c in counts]
    assert all(
        math.floor(q - 1e-6) <= n - 1 <= math.ceil(q + 1e-6) for q, n in zip(quotas, ranks_per_dataset, strict=True)
    )
    for (a, m), (b, n) in itertools.combinations(zip(counts, ranks_per_dataset, strict=True), 2):
        assert m == n or (m < n) == (a < b) or (a == b and abs(m - n) == 1)


def test_the_papers_datasets_are_assigned_to_the_papers_ranks() -> None:
    ranks_per_dataset = assign_ranks([int(n * 1e6) for n in PAPER_SIZES], 2048 * 8).ranks_per_dataset
    assert ranks_per_dataset.index(max(ranks_per_dataset)) == 3
    assert min(ranks_per_dataset) == ranks_per_dataset[2] == 46
    for rank in (0, 5000, 16_383):
        (dataset,) = assign_ranks([int(n * 1e6) for n in PAPER_SIZES], 2048 * 8).find_datasets(rank)
        assert sum(ranks_per_dataset[:dataset]) <= rank < sum(ranks_per_dataset[: dataset + 1])


@settings(deadline=None)
@given(COUNTS, st.integers(1, 30))
def test_every_rank_has_a_dataset_and_every_dataset_has_a_rank(counts: list[int], ranks: int) -> None:
    assignment = assign_ranks(counts, ranks)
    datasets_by_rank = [assignment.find_datasets(r) for r in range(ranks)]
    assert all(datasets_by_rank)
    assert {d for datasets in datasets_by_rank for d in datasets} == set(range(len(counts)))
    if ranks < len(counts):
        assert sum(map(len, datasets_by_rank)) == len(counts)
        load = [sum(counts[d] for d in datasets) for datasets in datasets_by_rank]
        smallest = [min(counts[d] for d in datasets) for datasets in datasets_by_rank]
        # Datasets are assigned largest first, so that without its smallest one no rank has more than any other.
        assert max(total - minimum for total, minimum in zip(load, smallest, strict=True)) <= min(load) * (1 + 1e-9)


@settings(deadline=None)
@given(COUNTS)
def test_temperature_goes_from_proportional_to_uniform_weights(counts: list[int]) -> None:
    assert compute_weights(counts) == pytest.approx(np.array(counts) / sum(counts))
    assert compute_weights(counts, math.inf) == pytest.approx(np.full(len(counts), 1 / len(counts)))
    largest_weights = [compute_weights(counts, t).max() for t in (1, 2, 5, 100, math.inf)]
    assert largest_weights == sorted(largest_weights, reverse=True) or np.ptp(largest_weights) < 1e-12
    assert compute_weights(counts, 2.0) == pytest.approx(np.sqrt(counts) / np.sqrt(counts).sum())


@pytest.mark.parametrize(
    ("counts", "temperature", "ranks", "output"),
    [([], 1, 1, "at least one sample"), ([3, 0], 1, 1, r"\[3, 0\]"), ([3], 0, 1, "positive"), ([3], 1, 0, "rank")],
)
def test_invalid_arguments_are_rejected(counts: list[int], temperature: float, ranks: int, output: str) -> None:
    with pytest.raises(InputError, match=output):
        assign_ranks(counts, ranks, temperature)
    with pytest.raises(InputError, match="too few"):
        round_shares([1, 1], 1, at_least=1)


@settings(deadline=None)
@given(SMALL_COUNTS, st.integers(0, 5), st.integers(1, 4), st.integers(1, 7))
def test_epoch_with_weights_by_size_has_every_sample_once(
    counts: tuple[int, ...], seed: int, ranks: int, batch: int
) -> None:
    sampler = MixtureSampler(SamplingSpec(counts, seed=seed), ranks, batch)
    samples = draw_all(sampler, sampler.steps)[: sum(counts)]
    assert sorted(samples) == [(d, k) for d, n in enumerate(counts) for k in range(n)]


@settings(deadline=None)
@given(SMALL_COUNTS, st.sampled_from([1.0, 3.0, math.inf]), st.integers(1, 400))
def test_no_sample_repeats_within_a_pass(counts: tuple[int, ...], temperature: float, length: int) -> None:
    """Across epochs of any length, a pass over a dataset is complete before the next pass begins."""
    sampler = MixtureSampler(SamplingSpec(counts, temperature=temperature, length=length), 1, length)
    order_by_dataset: dict[int, list[int]] = {}
    for _ in range(4):
        for dataset, index in list_pairs(sampler.select_batch(0, 0)):
            order_by_dataset.setdefault(dataset, []).append(index)
        sampler.advance()
    assert sampler.epoch == 4
    for dataset, order in order_by_dataset.items():
        n = counts[dataset]
        for first in range(0, len(order), n):
            one_pass = order[first : first + n]
            assert len(set(one_pass)) == len(one_pass)
        assert len(order) == 4 * sampler.draws[dataset]


@settings(deadline=None)
@given(SMALL_COUNTS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 80))
def test_the_sequence_is_the_same_for_any_number_of_ranks(
    counts: tuple[int, ...], ranks: int, batch: int, length: int
) -> None:
    spec = SamplingSpec(counts, temperature=2.0, seed=1, length=length)
    single, several = MixtureSampler(spec, 1, 1), MixtureSampler(spec, ranks, batch)
    assert draw_all(several, several.steps)[:length] == draw_all(single, length)


def test_every_step_follows_the_weights() -> None:
    counts = [int(n * 1e6) for n in PAPER_SIZES]
    sampler = MixtureSampler(SamplingSpec(tuple(counts), temperature=2.0, seed=2), 64, 32)
    weights = compute_weights(counts, 2.0)
    for step in (0, 12_345, sampler.steps - 1):
        datasets = np.concatenate([sampler.select_batch(step, r).dataset for r in range(64)])
        assert np.abs(np.bincount(datasets, minlength=16) - weights * 2048).max() < 0.5 * math.sqrt(2048)


@settings(deadline=None)
@given(SMALL_COUNTS, st.integers(1, 5), st.integers(0, 30), st.integers(1, 5), st.sampled_from(["mixed", "assigned"]))
def test_resumed_sampler_continues_the_sequence(
    counts: tuple[int, ...], ranks: int, stop: int, batch: int, mode: str
) -> None:
    spec = SamplingSpec(counts, mode=mode, temperature=1.5, seed=4)  # type: ignore[arg-type]
    original, resumed = MixtureSampler(spec, ranks, batch), MixtureSampler(spec, ranks, batch)
    original.advance(stop)
    resumed.resume(json.loads(json.dumps(original.state())))
    for _ in range(3):
        assert draw_all(original, 1) == draw_all(resumed, 1)
        original.advance()
        resumed.advance()
    assert original.state() == resumed.state()


@settings(deadline=None)
@given(SMALL_COUNTS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 60))
def test_mixture_resumes_on_another_number_of_ranks_without_loss(
    counts: tuple[int, ...], before: int, after: int, batch: int, length: int
) -> None:
    spec = SamplingSpec(counts, seed=9, length=length)
    sequence = draw_all(MixtureSampler(spec, 1, 1), length)
    first = MixtureSampler(spec, before, 2)
    half_epoch = first.steps // 2
    samples = draw_all(first, half_epoch)
    first.advance(half_epoch)
    second = MixtureSampler(spec, after, batch)
    second.resume(first.state())
    assert (samples + draw_all(second, second.steps))[:length] == sequence


def test_the_state_of_another_sequence_is_refused() -> None:
    state = MixtureSampler(SamplingSpec((5, 6)), 2, 3).state()
    with pytest.raises(InputError, match="other datasets"):
        MixtureSampler(SamplingSpec((5, 6), seed=1), 2, 3).resume(state)
    fixed = SamplingSpec((5, 6), mode="assigned")
    with pytest.raises(InputError, match="only with 2 ranks and batches of 3"):
        MixtureSampler(fixed, 4, 3).resume(MixtureSampler(fixed, 2, 3).state())
    with pytest.raises(InputError, match="batch_size 0"):
        MixtureSampler(fixed, 4, 0)


@settings(deadline=None)
@given(SMALL_COUNTS, st.integers(1, 12), st.integers(1, 4))
def test_assigned_ranks_draw_their_datasets_evenly(counts: tuple[int, ...], ranks: int, batch: int) -> None:
    sampler = MixtureSampler(SamplingSpec(counts, mode="assigned", seed=3), ranks, batch)
    draws: Counter[tuple[int, int]] = Counter()
    for rank in range(ranks):
        for step in range(sampler.steps):
            indices = sampler.select_batch(step, rank)
            assert len(indices) == batch
            assert set(indices.dataset.tolist()) <= set(sampler.assignment.find_datasets(rank))
            draws.update(list_pairs(indices))
    for dataset, n in enumerate(counts):
        times = [draws[dataset, k] for k in range(n)]
        assert max(times) - min(times) <= 1
        if ranks >= len(counts):
            assert min(times) >= 1
        assert sum(times) == sampler.draws[dataset]


def test_balancing_only_moves_samples_between_ranks() -> None:
    sampler = MixtureSampler(SamplingSpec((400, 300), seed=6), 4, 8)
    size = np.random.default_rng(0).lognormal(3, 1, (2, 400))

    def costs(indices: SampleIndices) -> np.ndarray:
        return size[indices.dataset, indices.index]

    unbalanced = [costs(sampler.select_batch(5, r)).sum() for r in range(4)]
    balanced = [sampler.select_batch(5, r, costs) for r in range(4)]
    assert sorted(p for d in balanced for p in list_pairs(d)) == sorted(
        p for r in range(4) for p in list_pairs(sampler.select_batch(5, r))
    )
    balanced_costs = [costs(d).sum() for d in balanced]
    assert max(balanced_costs) / np.mean(balanced_costs) < max(unbalanced) / np.mean(unbalanced)


@settings(deadline=None)
@given(COSTS, st.integers(1, 8))
def test_balancing_is_complete_and_near_optimal(costs: list[int], parts: int) -> None:
    balanced = balance_costs(costs, parts)
    assert sorted(k for part in balanced for k in part.tolist()) == list(range(len(costs)))
    assert all(len(part) for part in balanced) == (len(costs) >= parts)
    worst = max(sum(costs[k] for k in part) for part in balanced)
    assert worst <= max(*costs, 0, sum(costs) / parts + max(costs) * (1 - 1 / parts)) + 1e-9


@settings(deadline=None)
@given(COSTS, st.integers(1, 400), st.integers(1, 6))
def test_packed_batches_stay_within_the_budget(costs: list[int], budget: int, multiple: int) -> None:
    try:
        batches = pack_batches(costs, budget, multiple)
    except InputError:
        n_batches = len(costs) // multiple * multiple
        assert n_batches == 0 or any(
            len(batch) > 1 and sum(costs[k] for k in batch) > budget for batch in balance_costs(costs, n_batches)
        )
        return
    assert sorted(k for batch in batches for k in batch.tolist()) == list(range(len(costs)))
    assert len(batches) % multiple == 0
    assert all(len(batch) for batch in batches)
    for batch in batches:
        assert len(batch) == 1 or sum(costs[k] for k in batch) <= budget
    assert [b.tolist() for b in pack_batches(costs, budget, multiple)] == [b.tolist() for b in batches]


def test_budgets_balance_the_work_of_ranks() -> None:
    """The sizes are those of a mixture of molecules and slabs; batches with equal numbers of samples are unbalanced."""
    rng = np.random.default_rng(1)
    atoms = np.concatenate([rng.integers(5, 25, 1500), rng.integers(40, 220, 500)])[rng.permutation(2000)]
    unbalanced = np.split(np.arange(2000), 2000 // 25)
    budgeted = pack_batches(atoms, float(atoms.mean() * 25), 8)
    before, after = compute_imbalance(atoms, unbalanced, 8), compute_imbalance(atoms, budgeted, 8)
    print(f"slowest rank over the mean: {before:.2f} with 25 samples each, {after:.2f} within a budget of atoms")
    assert after < 1.02
    assert before > 1.2


@given(COUNTS, st.floats(0.5, 100.0), st.floats(0.5, 100.0))
def test_loss_weights_give_samples_the_effect_of_another_temperature(
    counts: list[int], sampling: float, loss: float
) -> None:
    """The weighted share of every dataset is its share at the temperature of the loss, and the mean weight is 1."""
    draws = compute_weights(counts, sampling) * 1e6
    weights = compute_loss_weights(counts, draws, loss)
    assert (weights * draws).sum() == pytest.approx(draws.sum())
    assert weights * draws / draws.sum() == pytest.approx(compute_weights(counts, loss))
    assert compute_loss_weights(counts, draws).tolist() == [1.0] * len(counts)
