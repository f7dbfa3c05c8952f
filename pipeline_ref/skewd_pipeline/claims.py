"""What the experiment claims, each claim with the figure this run measured for it.

A curve convinces the eye; a list of sentences, each true or false, can be disagreed with. Every claim is computed
from the rows alone, so that the same file judged anywhere gives the same list. A claim whose cells were not part of
the run (another grid, another stage) is listed as not applicable rather than dropped or passed.

Limits: the thresholds of the raw violation rates hold for the default floor on a machine that keeps up, and on edges
whose sender has no more to do than that floor: out of the inference stage, a span starts before its parent only when
the skew exceeds the model's own time. Elsewhere they are not applicable, since the law behind them (a violation happens
when the skew exceeds the separation) then gives other figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skewd_pipeline import confusion
from skewd_pipeline.confusion import NOT_THE_CLOCK
from skewd_pipeline.heuristics import HEURISTICS, OURS
from skewd_pipeline.inband import INBAND_ONLY
from skewd_pipeline.law import (
    AGREEMENT_LEAST,
    JUDGED_EDGES_LEAST,
    edge_name,
    exceptions,
    prediction_interval,
    violable_edge,
)
from skewd_pipeline.results import Check, LawCell, Results, Run

# transport -> (at 5 ms, at 10 ms): the least raw span-start rate, with the default floor, on an edge whose sender does
# no more than that floor: the model takes as long as it takes.
EXPECTED_RATES = {"zmq": (0.9, 0.95), "kafka": (0.1, 0.8), "aeron": (0.9, 0.95)}
EXPECTED_FLOOR_MS = 3.5
MODEL_STAGE = "inference"
INDETERMINATE_SHARE_MAX = 0.05
THROUGHPUT_LOSS_MAX = 0.05
ERROR_RATIO_LEAST = 10.0
NEED_NARROW_BOUNDS = ("tag-indeterminate", "heuristics-error")
WINDOWS_APART_MAX = 0.02
OWN_RATE_APART_MAX = 0.01
"""A raw reading is made beside each stamp; where a stage is put aside in between, the two differ."""


def claims(results: Results) -> list[Check]:
    """Every claim, judged on these results."""
    runs = results.runs
    found = [
        *_raw_rates(runs),
        _no_span_start_after_rewrite(runs),
        _residuals_within_uncertainty(runs),
        _sum_is_zero(runs, "durations_changed", "rewrite-durations", "rewrite changes no span's duration"),
        _sum_is_zero(runs, "order_changed", "rewrite-order", "rewrite keeps the order of one node's spans"),
        _sum_is_zero(runs, "times_changed", "tag-times", "tag touches no time"),
        *_tag_verdicts(runs),
        _bounds_hold(runs),
        _everything_synchronized(runs),
        _outputs(runs),
        _nothing_lost(runs),
        *_throughput(results),
        *_probes(results),
        *_law(results),
        *_over_time(results),
        *_blame(results),
        *_against_heuristics(results),
    ]
    paths = {row.path for row in results.bounds}
    return [_by_width(check) for check in found] if paths == {INBAND_ONLY} else found


def _by_width(check: Check) -> Check:
    """Over the transport under test alone bounds are as wide as its round trips: what needs narrow ones is told."""
    if check.name not in NEED_NARROW_BOUNDS or check.passed is None:
        return check
    said = f"{check.measured}; told, not judged: the clocks were compared over the transport under test alone"
    return Check(name=check.name, statement=check.statement, passed=None, measured=said)


def failed(checks: Iterable[Check]) -> list[Check]:
    """The claims this run does not bear out."""
    return [check for check in checks if check.passed is False]


def _rows(runs: Iterable[Run], **wanted: object) -> list[Run]:
    return [run for run in runs if all(getattr(run, key) == value for key, value in wanted.items())]


def _at(run: Run) -> str:
    return f"{run.transport} {run.skew_ms:g} ms"


def _list(values: Sequence[str], most: int = 6) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def _not_applicable(name: str, statement: str, why: str) -> Check:
    return Check(name=name, statement=statement, passed=None, measured=why)


def _raw_rates(runs: list[Run]) -> list[Check]:
    raw = _rows(runs, mode="off", rule="span-start") or _rows(runs, mode="tag", rule="span-start")
    below = [run for run in raw if run.skew_ms < run.floor_ms or run.skew_ms == 0]
    statement = "without correction, no span starts before its parent while the skew is below the service floor"
    if not below:
        found = [_not_applicable("raw-below-floor", statement, "no such cell in this run")]
    else:
        wrong = [f"{_at(run)}: {run.violation_rate:.3f}" for run in below if run.violations]
        measured = _list(wrong) or f"0 of {sum(run.edges for run in below)} edges in {len(below)} cells"
        found = [Check(name="raw-below-floor", statement=statement, passed=not wrong, measured=measured)]
    for transport, rates in EXPECTED_RATES.items():
        for skew_ms, least in zip((5.0, 10.0), rates, strict=True):
            name = f"raw-{transport}-{skew_ms:g}ms"
            statement = f"at {skew_ms:g} ms on {transport}, at least {least:.0%} of the child spans start too early"
            cells = _rows(raw, transport=transport, skew_ms=skew_ms, floor_ms=EXPECTED_FLOOR_MS)
            cells = [run for run in cells if _sender(run) not in (None, MODEL_STAGE)]
            # Kafka's clients with their own waits have other separations: the law predicts those, no constant does.
            cells = [run for run in cells if run.client != "default"]
            if not cells:
                found.append(_not_applicable(name, statement, "no such cell in this run"))
                continue
            lowest = min(cells, key=lambda run: run.violation_rate)
            measured = f"{lowest.violation_rate:.1%}"
            if len(cells) > 1:
                measured += f" ({lowest.stage} {lowest.direction}), the least of {len(cells)}"
            if lowest.violation_rate < least and lowest.separation_ms is not None:
                # Not a fault of the clocks: the law says so, and the reader should be told before they look for one.
                middle = lowest.separation_ms.p50
                measured += f"; the separations' median was {middle:.1f} ms, which a busy machine lengthens"
            passed = lowest.violation_rate >= least
            found.append(Check(name=name, statement=statement, passed=passed, measured=measured))
    return found


def _sender(run: Run) -> str | None:
    """Who sends over the edge that this row counts; None where its skew can violate none."""
    edge = violable_edge(run.stage, run.direction)
    return edge[0] if edge is not None else None


def _no_span_start_after_rewrite(runs: list[Run]) -> Check:
    name, statement = "rewrite-span-start", "after rewrite no span starts before its parent, at any skew"
    rows = _rows(runs, mode="rewrite", rule="span-start")
    if not rows:
        return _not_applicable(name, statement, "rewrite was not part of this run")
    wrong = [f"{_at(run)}: {run.all.violations}" for run in rows if run.all is not None and run.all.violations]
    total = sum(run.all.edges for run in rows if run.all is not None)
    return Check(name=name, statement=statement, passed=not wrong, measured=_list(wrong) or f"0 of {total} edges")


def _residuals_within_uncertainty(runs: list[Run]) -> Check:
    name = "rewrite-send-receive"
    statement = "after rewrite every negative send-receive gap is within the two spans' summed uncertainty"
    rows = _rows(runs, mode="rewrite", rule="send-receive")
    if not rows:
        return _not_applicable(name, statement, "rewrite was not part of this run")
    wrong = [f"{_at(run)}: {run.all.violations} beyond" for run in rows if run.all is not None and run.all.violations]
    residuals = [size for run in rows for size in run.residuals_ns]
    total = sum(run.all.edges for run in rows if run.all is not None)
    within = f"{len(residuals)} of {total} edges negative, all indeterminate"
    if residuals:
        within += f", the largest {max(residuals) / 1e3:.0f} us"
    return Check(name=name, statement=statement, passed=not wrong, measured=_list(wrong) or within)


def _sum_is_zero(runs: list[Run], key: str, name: str, statement: str) -> Check:
    values = [(run, getattr(run, key)) for run in runs if getattr(run, key) is not None]
    if not values:
        return _not_applicable(name, statement, "needs off beside it in the same run")
    wrong = [f"{_at(run)}: {value}" for run, value in values if value]
    spans = sum(run.spans for run, _ in values if run.rule == "span-start")
    return Check(name=name, statement=statement, passed=not wrong, measured=_list(wrong) or f"0 of {spans} spans")


def _tag_verdicts(runs: list[Run]) -> list[Check]:
    tagged = _rows(runs, mode="tag")
    statements = {
        "tag-violations": "every raw violation is called skewed or indeterminate by the tags",
        "tag-indeterminate": f"at 10 ms under {INDETERMINATE_SHARE_MAX:.0%} of the violations are indeterminate",
        "tag-unskewed": "no edge of an unskewed run is called skewed",
    }
    if not tagged:
        return [_not_applicable(name, text, "tag was not part of this run") for name, text in statements.items()]
    strange: dict[str, int] = {}
    total = 0
    for run in tagged:
        for verdict, count in (run.all.violation_verdicts if run.all else run.violation_verdicts).items():
            total += count
            if verdict not in ("skewed", "indeterminate"):
                strange[verdict] = strange.get(verdict, 0) + count
    measured = ", ".join(f"{count} {verdict}" for verdict, count in strange.items()) or f"all of {total}"
    found = [
        Check(name="tag-violations", statement=statements["tag-violations"], passed=not strange, measured=measured)
    ]

    shares = []
    for run in _rows(tagged, skew_ms=10.0):
        if run.violations:
            share = run.violation_verdicts.get("indeterminate", 0) / run.violations
            shares.append((share, f"{share:.1%} ({run.transport}, {run.rule})"))
    name = "tag-indeterminate"
    if shares:
        share, text = max(shares)
        passed = share < INDETERMINATE_SHARE_MAX
        found.append(Check(name=name, statement=statements[name], passed=passed, measured=f"at most {text}"))
    else:
        found.append(_not_applicable(name, statements[name], "no violation at 10 ms in this run"))

    name = "tag-unskewed"
    unskewed = [run.all for run in _rows(tagged, skew_ms=0.0) if run.all is not None]
    if unskewed:
        count = sum(every.verdicts.get("skewed", 0) for every in unskewed)
        measured = f"{count} of {sum(every.edges for every in unskewed)} edges"
        found.append(Check(name=name, statement=statements[name], passed=count == 0, measured=measured))
    else:
        found.append(_not_applicable(name, statements[name], "no unskewed cell in this run"))
    return found


def _bounds_hold(runs: list[Run]) -> Check:
    name = "bound-misses"
    statement = "the injected offset lies within clock.offset_ns +- clock.uncertainty_ns on every span"
    rows = [run for run in runs if run.mode != "off" and run.rule == "span-start"]
    if not rows:
        return _not_applicable(name, statement, "neither tag nor rewrite was part of this run")
    wrong = [f"{_at(run)} {run.mode}: {run.bound_misses}" for run in rows if run.bound_misses]
    spans = sum(run.spans - run.spans_unsynchronized for run in rows)
    widest = max((run.uncertainty_ns.max for run in rows if run.uncertainty_ns), default=0)
    measured = f"0 misses on {spans} spans; the widest bound +-{widest / 1e3:.0f} us"
    return Check(name=name, statement=statement, passed=not wrong, measured=_list(wrong) or measured)


def _everything_synchronized(runs: list[Run]) -> Check:
    name, statement = "synchronized", "every span left its sidecar with a bound"
    rows = [run for run in runs if run.mode != "off" and run.rule == "span-start"]
    if not rows:
        return _not_applicable(name, statement, "neither tag nor rewrite was part of this run")
    wrong = [f"{_at(run)} {run.mode}: {run.spans_unsynchronized}" for run in rows if run.spans_unsynchronized]
    measured = _list(wrong) or f"all of {sum(run.spans for run in rows)}"
    return Check(name=name, statement=statement, passed=not wrong, measured=measured)


def _outputs(runs: list[Run]) -> Check:
    statement = "the pipeline's outputs are correct at every skew"
    if not runs:
        return _not_applicable("outputs", statement, "the pipeline was not run")
    wrong = sorted({f"{_at(run)}: {run.outputs_correct:.2%}" for run in runs if run.outputs_correct != 1.0})
    cells = {(run.transport, run.skew_ms, run.stage, run.direction): run.messages for run in runs}
    measured = _list(wrong) or f"100% of {sum(cells.values())} messages"
    return Check(
        name="outputs",
        statement=statement,
        passed=not wrong,
        measured=measured,
    )


def _nothing_lost(runs: list[Run]) -> Check:
    rows = [run for run in runs if run.rule == "span-start"]
    if not rows:
        return _not_applicable("spans", "every span reached the backend", "the pipeline was not run")
    wrong = [f"{_at(run)} {run.mode}: {run.spans_missing}" for run in rows if run.spans_missing > 0]
    measured = _list(wrong) or f"all of {sum(run.spans for run in rows)}"
    return Check(name="spans", statement="every span reached the backend", passed=not wrong, measured=measured)


def _throughput(results: Results) -> list[Check]:
    found = []
    comparisons = (
        ("throughput-skew", "delivered throughput at 10 ms of skew is within 5% of that without skew", (0, 10)),
        ("throughput-sidecar", "delivered throughput with the sidecars is within 5% of that without", (0, 0)),
    )
    for name, statement, (skew_a, skew_b) in comparisons:
        worst: tuple[float, str] | None = None
        for transport in sorted({row.transport for row in results.throughput}):
            paced = [row for row in results.throughput if row.transport == transport and row.offered_per_s is not None]
            before = [row for row in paced if row.skew_ms == skew_a and (row.sidecar == "none") == (skew_b == skew_a)]
            after = [row for row in paced if row.skew_ms == skew_b and row.sidecar != "none"]
            # One pair for each run on the page, in the same order.
            for without, with_it in zip(before, after, strict=False):
                if without.delivered_per_s <= 0:
                    continue
                loss = 1 - with_it.delivered_per_s / without.delivered_per_s
                rates = f"{with_it.delivered_per_s:.1f}/s against {without.delivered_per_s:.1f}/s"
                text = f"{transport}: {rates} ({-loss:+.1%})"
                worst = max(worst, (loss, text)) if worst else (loss, text)
        if worst is None:
            found.append(_not_applicable(name, statement, "no such cells in this run"))
        else:
            passed = worst[0] <= THROUGHPUT_LOSS_MAX
            found.append(Check(name=name, statement=statement, passed=passed, measured=worst[1]))
    return found


def _probes(results: Results) -> list[Check]:
    found = []
    expected = (
        ("5 ms", 2, "`skewd check --peer` on the node that is 5 ms off exits 2"),
        ("0 ms", 0, "and on the same node with 0 ms exits 0"),
        ("no daemon", 3, "and with no daemon exits 3"),
    )
    for situation, code, statement in expected:
        name = f"check-{situation.replace(' ', '-')}"
        probes = [probe for probe in results.probes if probe.situation == situation]
        if not probes:
            found.append(_not_applicable(name, statement, "not asked in this run"))
            continue
        right = all(probe.exit_code == code and probe.perfdata for probe in probes)
        measured = f"exit {probes[0].exit_code}: {probes[0].line}"
        found.append(Check(name=name, statement=statement, passed=right, measured=measured))
    return found


def _law(results: Results) -> list[Check]:
    statements = {
        "law-edges": "in each cell as many edges are violated as were closer together than the skew, by the host's raw "
        "clock; of a hundred at most one differs",
        "law": "in at least 95% of cells the measured rate is within the 99% interval around the one that the "
        "synchronized cells' separations predict",
    }
    if not results.law:
        why = "needs an unskewed cell and a skewed one"
        return [_not_applicable(name, text, why) for name, text in statements.items()]
    own = [cell for cell in results.law if cell.own_rate is not None]
    apart = [abs((cell.own_rate or 0.0) - cell.measured_rate) for cell in own]
    differ = sum(round(by * cell.edges) for cell, by in zip(own, apart, strict=True))
    edges = sum(cell.edges for cell in own)
    measured = f"{differ} of {edges} edges in {len(own)} cells"
    if differ:
        worst = max(zip(apart, own, strict=True), key=lambda pair: pair[0])[1]
        measured += f"; most in {_cell_name(worst)}: {worst.measured_rate:.1%} for {worst.own_rate:.1%}"
    found = [
        Check(
            name="law-edges",
            statement=statements["law-edges"],
            passed=differ <= OWN_RATE_APART_MAX * edges if own else None,
            measured=measured if own else "no raw readings",
        )
    ]
    wrong = exceptions(results.law)
    measured = f"{len(results.law) - len(wrong)} of {len(results.law)} cells"
    if wrong:
        measured += "; not " + _list([_cell(cell) for cell in wrong])
    passed: bool | None = len(wrong) <= (1 - AGREEMENT_LEAST) * len(results.law)
    if min(cell.edges for cell in results.law) < JUDGED_EDGES_LEAST:
        passed = None
        measured += f"; told, not judged: that needs {JUDGED_EDGES_LEAST} messages a cell"
    return [*found, Check(name="law", statement=statements["law"], passed=passed, measured=measured)]


def _cell(cell: LawCell) -> str:
    expected = f"{cell.predicted_low:.1%} to {cell.predicted_high:.1%}"
    return f"{_cell_name(cell)}: {cell.measured_rate:.1%} for {expected}"


def _cell_name(cell: LawCell) -> str:
    return f"{cell.transport} {cell.rule} {cell.skew_ms:g} ms {cell.direction}, floor {cell.floor_ms:g}"


def _over_time(results: Results) -> list[Check]:
    statements = {
        "over-time-rewrite": "rewritten, no window of the long run has a violation beyond the two spans' uncertainty",
        "over-time-bounds": "through drift, steps and slews the true offset is inside the bound on every span",
        "over-time-edges": "at every moment of the long run as many edges are violated as were closer together than "
        "the skew, by the host's raw clock; of a hundred at most one differs",
        "over-time-law": "the rates of the long run's windows follow the skew: on average they are within "
        f"{WINDOWS_APART_MAX:.0%} of what it predicts",
        "over-time-signal": "the 30 s signal never blames a clock that turned no edge round",
    }
    if not results.long_runs:
        return [_not_applicable(name, text, "no long run") for name, text in statements.items()]
    fixed = [window for window in results.windows if window.mode == "rewrite"]
    bad = [f"{window.run} at {window.start_s:g} s: {window.violations}" for window in fixed if window.violations]
    unsure = sum(window.indeterminate for window in fixed)
    total = sum(window.edges for window in fixed)
    held = f"0 of {total} edges; {unsure} negative within the bound"
    missed = [f"{run.run}: {run.bound_misses}" for run in results.long_runs if run.bound_misses]
    spans = sum(run.spans for run in results.long_runs)
    between = sum(run.ambiguous for run in results.long_runs)
    said = f"0 misses on {spans} spans" + (
        f", {between} of them stamped while the clock was changed" if between else ""
    )
    raw = [window for window in results.windows if window.mode == "off" and window.own_rate is not None]
    differ = sum(abs(round((window.own_rate or 0.0) * window.edges) - window.violations) for window in raw)
    edges = sum(window.edges for window in raw)
    apart, agree, judged = window_agreement(results)
    alarms = [f"{run.run}: {run.false_alarms}" for run in results.long_runs if run.false_alarms]
    samples = sum(len(run.clock) for run in results.long_runs)
    found = [
        ("over-time-rewrite", not bad if fixed else None, _list(bad) or (held if fixed else "not rewritten")),
        ("over-time-bounds", not missed if spans else None, _list(missed) or said),
        (
            "over-time-edges",
            differ <= OWN_RATE_APART_MAX * edges if edges else None,
            f"{differ} of {edges} edges differ",
        ),
        (
            "over-time-law",
            apart <= WINDOWS_APART_MAX if judged else None,
            f"{apart:.1%} apart over {judged} windows, {agree} of them inside their 99% interval",
        ),
        ("over-time-signal", not alarms, _list(alarms) or f"0 of {samples} samples"),
    ]
    return [
        Check(name=name, statement=statements[name], passed=passed, measured=measured)
        for name, passed, measured in found
    ]


def window_agreement(results: Results) -> tuple[float, int, int]:
    """How far the uncorrected windows' rates are, on average, from where the skew and F say; how many of them are
    inside the 99 % interval around that; and how many could be judged.

    A window is one stretch of time, and unlike a cell's blocks shares its slow moments with no other: the interval,
    which takes messages for independent, is told and not judged. A window's prediction is a mean over different skews;
    the interval is that of one binomial rate, which is wider.
    """
    known = {
        (each.transport, each.rule, each.edge, each.floor_ms): len(each.separations_ns) for each in results.separations
    }
    agree = judged = 0
    apart = 0.0
    runs = {run.run: run for run in results.long_runs}
    mode = "off" if any(window.mode == "off" for window in results.windows) else "tag"
    for window in results.windows:
        run = runs.get(window.run)
        if window.mode != mode or window.predicted_rate is None or run is None:
            continue
        edge = violable_edge(run.stage, window.direction)
        of = known.get((run.transport, window.rule, edge_name(edge) if edge else None, run.floor_ms), 0)
        if not of:
            continue
        least, greatest = prediction_interval(round(window.predicted_rate * of), of, window.edges)
        judged += 1
        agree += least <= window.violations <= greatest
        apart += abs(window.predicted_rate - window.violations / window.edges)
    return apart / judged if judged else 0.0, agree, judged


def _blame(results: Results) -> list[Check]:
    statements = {
        "blame": "no verdict says what is not so: of clocks that were right, of stamps that were not",
        "blame-overloaded": "on an overloaded CPU with synchronized clocks no negative stamp is called skewed",
    }
    rows = results.confusion
    found = []
    if rows:
        bad = [
            f"{row.situation} {row.rule}: {row.count} {row.truth} called {row.verdict}" for row in confusion.wrong(rows)
        ]
        measured = _list(bad) or f"0 of {sum(row.count for row in rows)} edges"
        found.append(Check(name="blame", statement=statements["blame"], passed=not bad, measured=measured))
    else:
        found.append(_not_applicable("blame", statements["blame"], "tag was not part of this run"))
    name = "blame-overloaded"
    loaded = [row for row in rows if row.situation == "overloaded"]
    late = [row for row in loaded if row.truth == NOT_THE_CLOCK]
    if not late:
        why = "no stamp came out negative" if loaded else "needs --overload"
        return [*found, _not_applicable(name, statements[name], why)]
    blamed = sum(row.count for row in loaded if row.verdict == "skewed")
    said = ", ".join(f"{row.count} {row.verdict}" for row in late)
    total = sum(row.count for row in loaded if row.rule == late[0].rule)
    measured = f"{blamed} skewed; of {total} late stamps {sum(row.count for row in late)} negative: {said}"
    return [*found, Check(name=name, statement=statements[name], passed=blamed == 0, measured=measured)]


def _against_heuristics(results: Results) -> list[Check]:
    statements = {
        "heuristics-error": "at 5 ms the starts of synchronous children are at least 10 x nearer the truth than by the "
        "best heuristic",
        "heuristics-introduced": "correcting by measured offsets introduces no violation",
    }
    ours = [row for row in results.heuristics if row.method == OURS]
    found = []
    ratios = []
    for row in ours:
        others = [
            other.rms_us
            for other in results.heuristics
            if other.method in HEURISTICS
            and (other.traces, other.edges, other.skew_ms) == (row.traces, row.edges, row.skew_ms)
        ]
        if row.edges == "synchronous" and row.skew_ms == 5.0 and others and row.rms_us > 0:
            ratios.append((min(others) / row.rms_us, f"{row.rms_us:.0f} us for {min(others):.0f} us ({row.traces})"))
    if ratios:
        ratio, text = min(ratios)
        found.append(
            Check(
                name="heuristics-error",
                statement=statements["heuristics-error"],
                passed=ratio >= ERROR_RATIO_LEAST,
                measured=f"{ratio:.0f} x: RMS {text}",
            )
        )
    else:
        found.append(
            _not_applicable("heuristics-error", statements["heuristics-error"], "no traces with calls at 5 ms")
        )
    name = "heuristics-introduced"
    if not ours:
        return [*found, _not_applicable(name, statements[name], "not compared in this run")]
    bad = [f"{row.traces} {row.edges} {row.skew_ms:g} ms: {row.introduced}" for row in ours if row.introduced]
    measured = _list(bad) or f"0 of {sum(row.relations for row in ours)} relations"
    return [*found, Check(name=name, statement=statements[name], passed=not bad, measured=measured)]
