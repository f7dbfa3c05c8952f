"""What the experiment claims, each claim with the figure this run measured for it.

A curve convinces the eye; a list of sentences, each true or false, can be disagreed with. Every claim is computed
from the rows alone, so that the same file judged anywhere gives the same list. A claim whose cells were not part of
the run (another grid, another stage) is listed as not applicable rather than dropped or passed.

Limits: the thresholds of the raw violation rates hold for the default stage and floor on a machine that keeps up;
elsewhere they are not applicable, since the law behind them (a violation happens when the skew exceeds the
separation) then gives other figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skewd_pipeline.results import Check, Results, Run

# transport -> (at 5 ms, at 10 ms): the least raw span-start rate, with the default floor and inference behind.
EXPECTED_RATES = {"zmq": (0.9, 0.95), "kafka": (0.1, 0.8), "aeron": (0.9, 0.95)}
EXPECTED_FLOOR_MS = 3.5
INDETERMINATE_SHARE_MAX = 0.05
THROUGHPUT_LOSS_MAX = 0.05


def claims(results: Results) -> list[Check]:
    """Every claim, judged on these results."""
    runs = results.runs
    return [
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
    ]


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
            cells = _rows(
                raw, transport=transport, skew_ms=skew_ms, floor_ms=EXPECTED_FLOOR_MS, stage="inference",
                direction="behind",
            )  # fmt: skip
            # Kafka's clients with their own waits have other separations: the law predicts those, no constant does.
            cells = [run for run in cells if run.client != "default"]
            if not cells:
                found.append(_not_applicable(name, statement, "no such cell in this run"))
                continue
            lowest = min(cells, key=lambda run: run.violation_rate)
            measured = f"{lowest.violation_rate:.1%}"
            if lowest.violation_rate < least and lowest.separation_ms is not None:
                # Not a fault of the clocks: the law says so, and the reader should be told before they look for one.
                middle = lowest.separation_ms.p50
                measured += f"; the separations' median was {middle:.1f} ms, which a busy machine lengthens"
            passed = lowest.violation_rate >= least
            found.append(Check(name=name, statement=statement, passed=passed, measured=measured))
    return found


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
    wrong = sorted({f"{_at(run)}: {run.outputs_correct:.2%}" for run in runs if run.outputs_correct != 1.0})
    cells = {(run.transport, run.skew_ms): run.messages for run in runs}
    measured = _list(wrong) or f"100% of {sum(cells.values())} messages"
    return Check(
        name="outputs",
        statement="the pipeline's outputs are correct at every skew",
        passed=not wrong,
        measured=measured,
    )


def _nothing_lost(runs: list[Run]) -> Check:
    rows = [run for run in runs if run.rule == "span-start"]
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
            if not before or not after or before[0].delivered_per_s <= 0:
                continue
            loss = 1 - after[0].delivered_per_s / before[0].delivered_per_s
            rates = f"{after[0].delivered_per_s:.1f}/s against {before[0].delivered_per_s:.1f}/s"
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
