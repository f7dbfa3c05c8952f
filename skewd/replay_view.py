"""What a replayed record says, for programs and for people. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from skewd.durations import format_duration
from skewd.evidence import VERSION
from skewd.replay import Judgement, Replay, Summary, judgements

_UNITS = {"drift": ("ppm", 1_000, "max_drift_ppm"), "wander": ("ppb/s", 1, "max_wander_ppb_per_s")}


def told(replay: Replay) -> dict[str, Any]:
    """``skewd replay --json``; times are wall-clock nanoseconds, unknown is None."""
    about = replay.about
    data: dict[str, Any] = {
        "format": VERSION,
        "node": None if about is None else about.node,
        "recorded_by": None if about is None else about.version,
        "virtual": None if about is None else about.virtual,
        "clock_source": None if about is None else about.clock_source,
        "from_ns": replay.first_wall_ns,
        "to_ns": replay.last_wall_ns,
        "runs": len(replay.runs),
        "looks": replay.looks,
        "bounds": {"compared": replay.compared, "identical": replay.identical},
        "published": {
            "compared": replay.published_compared,
            "identical": replay.published_identical,
            "not_replayed": replay.published_other,
        },
        "first_difference": replay.first_difference,
        "missed": replay.missed,
        "cut_bytes": replay.cut_bytes,
        "steps": replay.steps,
        "restarts": replay.restarts,
        "limits": None
        if about is None
        else {"max_drift_ppm": about.max_drift_ppm, "max_wander_ppb_per_s": about.max_wander_ppb_per_s},
        "pairs": [_pair(summary) for summary in replay.pairs.values()],
    }
    if replay.bounds is not None:
        data["replayed"] = replay.bounds
    return data


def _pair(summary: Summary) -> dict[str, Any]:
    last, (drift, wander) = summary.last, judgements(summary)
    return {
        "name": summary.name,
        "kind": summary.kind,
        "smear": summary.smear,
        "beginnings": summary.beginnings,
        "proofs": max(summary.proofs, summary.kept),
        "kept": summary.kept,
        "contradictions": summary.contradictions,
        "width_ns": summary.widths.told(),
        "lower_ns": None if last is None else last.lower_ns,
        "upper_ns": None if last is None else last.upper_ns,
        "drift_lower_ppb": None if last is None else last.slowest_ppb,
        "drift_upper_ppb": None if last is None else last.fastest_ppb,
        "drift": drift.told(),
        "wander": wander.told(),
        "windows": [
            {
                "window_s": round(window / 1e9),
                "windows": extreme.windows,
                "drift_at_least_ppb": extreme.least,
                "drift_at_most_ppb": extreme.most,
                "wander_at_least_ppb_per_s": None if fast is None else fast.least,
                "wander_at_most_ppb_per_s": None if fast is None else fast.most,
            }
            for window, extreme in sorted(summary.drift.items())
            for fast in (summary.wander.get(window),)
        ],
    }


def as_status(replay: Replay) -> dict[str, Any]:
    """The part of a status that ``assumptions.judge`` reads, made of a whole record."""
    rows: dict[str, list[dict[str, Any]]] = {"peer": [], "source": []}
    for summary in replay.pairs.values():
        drift, wander = judgements(summary)
        rows[summary.kind].append(
            {
                "name": summary.name,
                "age_s": 0.0,
                "assumptions": {
                    "contradicted_age_s": 0 if summary.contradictions else None,
                    "drift": drift.told(),
                    "wander": wander.told(),
                },
            }
        )
    about = replay.about
    return {
        "node": None if about is None else about.node,
        "virtual": about is not None and about.virtual,
        "peers": rows["peer"],
        "sources": rows["source"],
    }


def render(replay: Replay, *, calibrate: bool) -> str:
    """``skewd replay``, for people."""
    return "".join(f"{line}\n" for line in _lines(replay, calibrate))


def _lines(replay: Replay, calibrate: bool) -> Iterator[str]:
    about = replay.about
    if about is None:
        yield "nothing is in this record"
        return
    begun, ended = replay.first_wall_ns or 0, replay.last_wall_ns or 0
    virtual = "  VIRTUAL CLOCK" if about.virtual else ""
    yield f"{about.node}  {_utc(begun)} to {_utc(ended)} ({_long(ended - begun)})  skewd {about.version}{virtual}"
    same = replay.compared == replay.identical and replay.published_compared == replay.published_identical
    if replay.compared or replay.published_compared:
        yield (
            f"bounds: {'identical to' if same else 'DIFFERENT from'} the daemon's,"
            f" {replay.identical} of {replay.compared}; published: {replay.published_identical}"
            f" of {replay.published_compared}"
            + (f", {replay.published_other} rest on what is not recorded" if replay.published_other else "")
        )
    else:
        yield "bounds: the record ends before the daemon's own were written to it; nothing to compare with"
    if replay.first_difference is not None:
        yield f"  first difference: {replay.first_difference}"
    for count, what in (
        (replay.missed, "proofs were lost on the way into the record"),
        (replay.cut_bytes, "bytes at the end of a file can't be read"),
        (replay.steps, "steps of the wall clock"),
        (replay.restarts, "times the raw clock was not continuous (a suspend, another clock source)"),
        (len(replay.runs) - 1, "changes of the raw clock (a reboot, or another era)"),
    ):
        if count > 0:
            yield f"  {count} {what}"
    for summary in replay.pairs.values():
        yield ""
        yield from _pair_lines(summary, calibrate)
    if calibrate:
        yield ""
        yield from _advice(replay)


def _pair_lines(summary: Summary, calibrate: bool) -> Iterator[str]:
    proofs = max(summary.proofs, summary.kept)
    smear = ", smeared" if summary.smear else ""
    yield (
        f"{summary.name} ({summary.kind}{smear}): {proofs} proofs, {summary.kept} of them changed something;"
        f" {summary.contradictions} contradictions"
    )
    widths = summary.widths.told()
    if widths is not None:
        low, middle, high, most = (format_duration(widths[key]) for key in ("min", "p50", "p99", "max"))
        yield f"  width   {low} at best, {middle} median, {high} for 99 of 100, {most} at worst"
    for of, judged in zip(("drift", "wander"), judgements(summary), strict=True):
        yield f"  {of:<7} {_judged(of, judged)}"
    if calibrate:
        for window, extreme in sorted(summary.drift.items()):
            fast = summary.wander.get(window)
            wandered = (
                "" if fast is None else f"   wander {_between(fast.least, fast.most, 1)} ppb/s in {fast.windows} pairs"
            )
            yield (
                f"    windows of {window // 1_000_000_000:>4} s: drift"
                f" {_between(extreme.least, extreme.most, 1_000)} ppm in {extreme.windows}{wandered}"
            )


def _between(least: int, most: int, scale: int) -> str:
    return f"{least / scale:.6g} to {most / scale:.6g}"


def _judged(of: str, judged: Judgement) -> str:
    unit, scale, _ = _UNITS[of]
    limit = f"{judged.limit / scale:.6g}"
    if judged.jump:
        return f"no limit up to {100 * judged.limit / scale:.6g} {unit} explains it: a clock jumped, or a stamp lies"
    seen = (
        "not observed yet"
        if judged.at_most is None
        else f"at least {judged.at_least / scale:.6g}, at most {judged.at_most / scale:.6g} {unit}"
        f" over {judged.window_s} s"
    )
    if judged.refuted is not None:
        seen += f"; no motion within {judged.refuted / scale:.6g} {unit} explains the messages"
    word = {"within": "fits", "violated": "DOES NOT FIT", "unknown": "can't tell yet"}[judged.verdict.value]
    return f"{seen}; the limit {limit} {word}"


def _advice(replay: Replay) -> Iterator[str]:
    """Which limits to declare. UTC does not drift, so a source tells of this clock alone; a peer, of two."""
    about = replay.about
    assert about is not None
    declared = {"drift": about.max_drift_ppm, "wander": about.max_wander_ppb_per_s}
    sources = [summary for summary in replay.pairs.values() if summary.kind == "source" and not summary.smear]
    peers = [summary for summary in replay.pairs.values() if summary.kind == "peer"]
    for place, of in enumerate(("drift", "wander")):
        unit, scale, key = _UNITS[of]
        by_source = [judgements(summary)[place] for summary in sources]
        by_peer = [judgements(summary)[place] for summary in peers]
        if any(judged.jump for judged in by_source + by_peer):
            yield f"[clock] {key}: nothing to declare; find out which clock jumps (a pause, a migration, a bad stamp)"
            continue
        wanted = [judged.declare for judged in by_source if judged.declare is not None]
        if wanted and len(wanted) == len(by_source):
            # Of a pair with UTC the limit is this node's own, but for what the two rates do to each other (0.01 %).
            most = max(max(wanted) / scale, declared[of])
            if all(judged.verdict.value == "within" for judged in by_source) and most <= declared[of] * 1.001:
                yield f"[clock] {key} = {declared[of]:g}: fits this clock, by {len(by_source)} sources of UTC"
            else:
                yield f"[clock] {key} = {most:g}: declare at least this for this clock, now {declared[of]:g}"
        elif by_source:
            yield f"[clock] {key} = {declared[of]:g}: can't tell yet by UTC; record for longer, or ask a nearer source"
        broken = [judged for judged in by_peer if judged.verdict.value == "violated"]
        if broken:
            worst = max(max(judged.at_least, judged.refuted or 0) for judged in broken) / scale
            yield (
                f"[clock] {key}: a pair with a peer moved by at least {worst:.6g} {unit}, so one of its two clocks by"
                f" at least {worst / 2:.6g}; raise it on the node whose clock it is"
            )
        elif by_peer and not by_source:
            fits = all(judged.verdict.value == "within" for judged in by_peer)
            yield (
                f"[clock] {key} = {declared[of]:g}: "
                + ("fits, as far as pairs tell; both clocks of a pair may do the same, and only UTC shows that"
                   if fits else "can't tell yet; record for longer, or nearer peers")
            )


def _utc(ns: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 1_000_000_000))


def _long(ns: int) -> str:
    seconds = max(ns, 0) // 1_000_000_000
    for unit, scale in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds} s"
