"""The figures of a load test are what they are called."""

import pickle

import numpy as np
import pytest
from scipy.stats import kstest

from loadtests.served.histogram import NAMES, PERCENTILES, Latencies
from loadtests.served.problems import Changing, grid, one_of_many, pulls, solves
from loadtests.served.rows import noise
from loadtests.served.schedule import poisson
from loadtests.served.tally import BLOCKS, WRONG, Tally
from loadtests.served.watch import resident_bytes, slope


def kept(values):
    made = Latencies()
    for value in values:
        made.record(value)
    return made


@pytest.mark.parametrize("size", [1, 37, 20_000])
def test_percentiles_are_those_of_numpy(size):
    values = np.random.default_rng(417_902_663).lognormal(-5, 1.5, size)
    histogram = kept(values)
    # Ranks in whole numbers: numpy's "inverted_cdf" takes 99.9 % of 20 000 for a little more than 19 980.
    ranks = [-(-round(10 * percent) * size // 1000) for percent in PERCENTILES]
    expected = np.sort(values)[np.array(ranks) - 1]
    np.testing.assert_allclose(expected[:3], np.percentile(values, PERCENTILES[:3], method="inverted_cdf"))
    found = [histogram.summary()[name] for name in NAMES]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
    assert histogram.summary()["max"] == pytest.approx(values.max(), rel=2e-3, abs=1e-6)
    assert histogram.count == size


def test_histograms_add_up_across_processes():
    values = np.random.default_rng(950_137_264).exponential(0.01, (2, 3000))
    first, second = (Latencies.decode(kept(part).encode()) for part in values)
    first.add(second)
    assert first.count == 6000
    both = np.percentile(values, 99, method="inverted_cdf")
    assert first.percentile(99) == pytest.approx(both, rel=2e-3)


def test_a_histogram_of_nothing_says_so_and_a_wrong_clock_is_noticed():
    assert set(Latencies().summary().values()) == {None}
    assert Latencies.decode(Latencies().encode()).count == 0
    with pytest.raises(ValueError, match="never negative"):
        Latencies().record(-1e-9)
    with pytest.raises(ValueError, match="never negative"):
        Latencies().record(float("nan"))
    assert kept([1e9]).percentile(50) == pytest.approx(3600, rel=2e-3)


def test_arrivals_are_a_poisson_process():
    rate, seconds = 200.0, 50.0
    due = poisson(rate, seconds, 733_018_245, 10**6)
    assert np.all(np.diff(due) >= 0)
    assert due[0] > 0
    assert due[-1] < seconds
    # Their number is Poisson: five deviations are a chance of one in two million.
    assert abs(due.size - rate * seconds) < 5 * np.sqrt(rate * seconds)
    assert kstest(np.diff(due), "expon", args=(0, 1 / rate)).pvalue > 1e-4
    np.testing.assert_array_equal(due, poisson(rate, seconds, 733_018_245, 10**6))
    assert not np.array_equal(due, poisson(rate, seconds, 733_018_246, 10**6)[: due.size])
    np.testing.assert_array_equal(due[:10], poisson(rate, seconds, 733_018_245, 10))


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_an_open_loop_needs_a_rate_and_a_time(rate, seconds):
    with pytest.raises(ValueError, match="above 0"):
        poisson(rate, seconds, 118_204_773, 10)


def tally():
    made = Tally(6.0, limit=0.5)
    made.record(0.5, 0.1, None)
    made.record(1.5, 0.7, None)
    made.record(5.9, 0.2, None)
    made.record(2.5, 3.0, "DEADLINE")
    made.verdict(True, True)
    return made


def test_goodput_counts_answers_within_the_limit_and_failures_apart():
    made = tally()
    assert (made.steps, made.right, made.good) == (4, 3, 2)
    assert made.errors == {"DEADLINE": 1}
    assert made.answered.count == 3
    assert made.failed.count == 1
    assert [block.count for block in made.blocks] == [1, 1, 0, 0, 0, 1]


def test_a_run_lasts_until_its_last_answer():
    tally, other = Tally(10.0, 1.0), Tally(10.0, 1.0)
    assert tally.lasted == 10.0
    tally.record(3.0, 2.0, None)
    tally.record(9.0, 30.0, "DEADLINE")
    assert tally.lasted == 10.0, "a failure is no answer"
    other.record(9.5, 2.5, None)
    tally.add(other)
    assert tally.lasted == 12.0


def test_a_wrong_answer_is_neither_throughput_nor_goodput():
    made = tally()
    made.verdict(False, within=True)
    assert (made.steps, made.right, made.good, made.checked) == (4, 2, 1, 2)
    assert made.errors[WRONG] == 1


def test_tallies_travel_between_processes_and_add_up():
    whole = Tally(6.0, limit=0.5)
    for _ in range(2):
        whole.add(pickle.loads(pickle.dumps(tally())))
    assert (whole.steps, whole.right, whole.good, whole.checked) == (8, 6, 4, 2)
    assert [block.count for block in whole.blocks] == [2, 2, 0, 0, 0, 2]
    assert whole.answered.percentile(100) == pytest.approx(0.7, rel=2e-3)


def test_the_interval_of_a_slope_holds_the_truth():
    rng = np.random.default_rng(288_641_905)
    at = np.linspace(0, 100, 500)
    inside = 0
    for _ in range(60):
        found = slope(list(at), list(1e8 + 2e4 * at + 3e5 * rng.standard_normal(at.size)))
        assert found.low < found.value < found.high
        inside += found.low < 2e4 < found.high
    # 95 % of 60, less four deviations.
    assert inside >= 50
    flat = slope(list(at), [5e7] * 500)
    np.testing.assert_allclose((flat.value, flat.low, flat.high), 0, atol=1e-6)


def test_growth_at_the_start_is_no_slope_and_a_few_samples_are_none():
    at = np.linspace(0, 100, 500)
    filled = slope(list(at), list(1e8 + 1e6 * np.minimum(at, 19)))
    assert filled.value == pytest.approx(0, abs=1e-3)
    assert slope(list(at[:20]), [1.0] * 20) is None


def test_memory_of_a_process_is_read():
    import os

    before = resident_bytes(os.getpid())
    held = np.ones(1 << 23)
    assert resident_bytes(os.getpid()) - before > held.nbytes * 0.9


def test_the_noise_is_how_much_blocks_differ():
    rng = np.random.default_rng(664_120_087)

    def blocks(scales):
        return [kept(scale * rng.uniform(0.9, 1.1, 4000)) for scale in scales]

    quiet, loud = noise(blocks([0.01] * BLOCKS)), noise(blocks(0.01 * np.exp(rng.standard_normal(BLOCKS))))
    assert quiet["p50"] < 0.01
    assert loud["p50"] > 0.3
    assert quiet["throughput"] == pytest.approx(0, abs=1e-12)
    assert set(noise([*blocks([0.01] * (BLOCKS - 1)), Latencies()]).values()) == {None}


def test_answers_and_gradients_are_judged_without_the_server():
    from scipy.sparse.linalg import spsolve

    from backsolve import Client

    A = Changing(7, (3,)).at(5)
    b, g = np.random.default_rng(501_937_718).standard_normal((2, 49))
    x = spsolve(A.tocsc(), b)
    assert solves(A, x, b)
    assert not solves(A, x * (1 + 1e-6), b)
    assert not solves(A, np.full(49, np.nan), b)
    with Client("embedded") as client:
        pulled = client.vjp(A, x, g)
    assert pulls(A, x, g, pulled)
    assert not pulls(A, x, -g, pulled)
    pulled.values.data[11] *= 1 + 1e-3
    assert not pulls(A, x, g, pulled)


def test_new_matrices_are_new_and_old_ones_the_same():
    systems = Changing(6, (1,))
    np.testing.assert_array_equal(systems.at(4).data, Changing(6, (1,)).at(4).data)
    for other in (systems.at(5), Changing(6, (2,)).at(4)):
        assert not np.array_equal(systems.at(4).data, other.data)
        np.testing.assert_array_equal(systems.at(4).indices, other.indices)
    first, second, same = one_of_many(6, 1), one_of_many(6, 2), one_of_many(6, 1)
    np.testing.assert_array_equal(first.indices, same.indices)
    assert not np.array_equal(first.indptr, second.indptr)
    assert not np.array_equal(first.indptr, one_of_many(6, 1, salt=1).indptr)
    for A in (grid(6), first, systems.at(4)):
        full = np.abs(A.toarray())
        assert np.all(2 * np.diag(full) > full.sum(axis=1))
