"""What messages alone tell about drift and wander: proven violations are real, and real ones are found."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.bounds.observed import RECENT_NS, WINDOWS_S, Observed
from skewd.bounds.pair import PairBound

SECOND = 1_000_000_000
EPOCH = 10**15
LIMIT_PPM, WANDER = 200, 20


class Pair:
    """A remote clock whose drift is a function of time (s, ppb), asked once a second over a jittery way."""

    def __init__(self, drift_ppb: Callable[[int], float], *, seed: int = 1, least_ns: int = 50_000) -> None:
        self.drift_ppb = drift_ppb
        self.random = random.Random(seed)
        self.least_ns = least_ns
        self.second = 0
        self.offset_ns = 7e9
        self.observed = Observed(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
        self.drifts: list[float] = []

    def run(self, seconds: int) -> Pair:
        for _ in range(seconds):
            drift = self.drift_ppb(self.second)
            self.drifts.append(drift)
            ways = [self.least_ns + round(self.random.expovariate(1 / 100_000)) for _ in range(2)]
            sent = EPOCH + self.second * SECOND

            def remote(local: int, began: int = sent, rate: float = drift) -> float:
                return local + self.offset_ns + rate * (local - began) / SECOND

            there = sent + ways[0]
            # Outward by a nanosecond: remote stamps here are rounded, real ones are not.
            self.observed.outgoing(sent, round(remote(there)) + 1)
            self.observed.incoming(round(remote(there)) - 1, there + ways[1])
            self.offset_ns += drift
            self.second += 1
        return self

    def told(self) -> dict[str, dict[str, int | str | None]]:
        return self.observed.told(EPOCH + self.second * SECOND)


def test_steady_clocks_are_within_the_limits() -> None:
    pair = Pair(lambda _: 12_345.0).run(6)
    assert pair.told()["drift"]["verdict"] == "unknown"
    assert pair.told()["drift"]["at_most"] is None
    told = pair.run(30).told()["drift"]
    assert (told["verdict"], told["limit"]) == ("within", 200_000)
    assert told["at_least"] <= 12_345 <= told["at_most"]  # type: ignore[operator]
    told = pair.run(1600).told()["wander"]
    assert (told["verdict"], told["at_least"]) == ("within", 0)


def test_a_drift_beyond_the_limit_is_proven_with_figures() -> None:
    told = Pair(lambda _: -260_000.0).run(30).told()["drift"]
    assert told["verdict"] == "violated"
    assert 200_000 < told["at_least"] <= 260_000 <= told["at_most"]  # type: ignore[operator]


def test_the_filter_cannot_say_by_how_much_and_this_can() -> None:
    pair = PairBound(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
    seen = Observed(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
    for second in range(40):
        sent = EPOCH + second * SECOND
        offset = 260_000 * second
        if not pair.outgoing(sent, sent + offset + 60_000):
            seen.contradiction(sent)
        seen.outgoing(sent, sent + offset + 60_000)
        if not pair.incoming(sent + offset + 60_000, sent + 120_000):
            seen.contradiction(sent)
        seen.incoming(sent + offset + 60_000, sent + 120_000)
        drift = pair.drift(sent)
        assert drift is None or drift.hi <= 200_001
    assert pair.contradictions > 3
    assert seen.told(sent)["contradicted_age_s"] is not None
    assert 200_000 < seen.told(sent)["drift"]["at_least"] <= 260_000


def test_a_wander_beyond_the_limit_is_proven() -> None:
    told = Pair(lambda second: 60.0 * second).run(1200).told()
    assert told["wander"]["verdict"] == "violated"
    assert 20 < told["wander"]["at_least"] <= 60 <= told["wander"]["at_most"]  # type: ignore[operator]
    assert told["drift"]["verdict"] == "within"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 50_000, 3_000_000]), st.integers(1, 120))
def test_nothing_is_called_violated_that_keeps_to_the_limits(seed: int, least_ns: int, swing_s: int) -> None:
    choose = random.Random(seed)
    drift = [choose.uniform(-200_000, 200_000)]
    for second in range(300):
        push = WANDER if (second // swing_s + seed) % 2 else -WANDER
        drift.append(max(-200_000.0, min(200_000.0, drift[-1] + push)))
    pair = Pair(lambda second: drift[second], seed=seed, least_ns=least_ns)
    for _ in range(30):
        told = pair.run(10).told()
        assert "violated" not in (told["drift"]["verdict"], told["wander"]["verdict"])
        if told["drift"]["at_most"] is not None:
            assert told["drift"]["at_least"] <= max(map(abs, pair.drifts))  # type: ignore[operator]
            assert told["drift"]["at_most"] >= min(map(abs, pair.drifts))  # type: ignore[operator]


def test_an_old_violation_is_history() -> None:
    pair = Pair(lambda second: 300_000.0 if second < 60 else 0.0).run(100)
    assert pair.told()["drift"]["verdict"] == "violated"
    pair.second += RECENT_NS // SECOND
    pair.offset_ns = 7e9
    assert pair.run(40).told()["drift"]["verdict"] == "within"


def test_a_contradiction_is_told_and_a_jump_has_a_size() -> None:
    pair = Pair(lambda _: 0.0).run(40)
    at = EPOCH + 40 * SECOND
    pair.observed.contradiction(at)
    assert pair.observed.told(at)["contradicted_age_s"] == 0
    assert pair.observed.told(at + 5 * SECOND)["contradicted_age_s"] == 5
    assert pair.observed.told(at + RECENT_NS + 1)["contradicted_age_s"] is None
    pair.offset_ns -= 1e9
    told = pair.run(40).told()["drift"]
    assert told["verdict"] == "violated"
    assert told["at_least"] > 1e9 / 20  # type: ignore[operator]


def test_late_repeated_and_lonely_proofs_do_no_harm() -> None:
    seen = Observed(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
    for second in (*range(60), *range(60), 3, 59, 0):
        sent = EPOCH + second * SECOND
        seen.outgoing(sent, sent + 50)
        seen.incoming(sent + 50, sent + 100)
    assert seen.told(EPOCH + 60 * SECOND)["drift"]["verdict"] == "within"
    one_sided = Observed(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
    for second in range(100):
        one_sided.outgoing(second * SECOND, second * SECOND + 50)
    assert one_sided.told(100 * SECOND)["drift"]["at_most"] is None


@pytest.mark.parametrize("epoch", [-(10**16), 0, 1, 4 * SECOND - 1])
def test_any_epoch_will_do(epoch: int) -> None:
    seen = Observed(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
    for tick in range(200):
        sent = epoch + tick * SECOND // 4
        seen.outgoing(sent, sent + 50)
        seen.incoming(sent + 50, sent + 100)
    assert seen.told(epoch + 50 * SECOND)["drift"]["verdict"] == "within"


def test_slow_polls_are_judged_by_the_long_windows() -> None:
    seen = Observed(max_drift_ppm=LIMIT_PPM, max_wander_ppb_per_s=WANDER)
    for second in range(0, 16_000, 400):
        sent = EPOCH + second * SECOND
        seen.outgoing(sent, sent + 20_000_000)
        seen.incoming(sent + 10_000_000, sent + 30_000_000)
    told = seen.told(EPOCH + 16_000 * SECOND)
    assert told["drift"]["verdict"] == "within"
    assert told["drift"]["window_s"] >= WINDOWS_S[-1] // 2
