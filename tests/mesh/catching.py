"""Whether a campaign notices that a protection is missing, and by what."""

from __future__ import annotations

from tests.mesh.attempts import attempt
from tests.mesh.liars import WAYS
from tests.mesh.mutants import made_wrong
from tests.mesh.plays import PLAYS, play

LIKELY = {
    "one path is enough": ("bounds of a nanosecond",),
    "paths need not be disjoint": ("false UTC",),
    "records are carried without wander": ("a long silence between steady clocks",),
    "limits are halved": ("nothing happens",),
    "whoever signs a record exists": ("made-up members", "a victim framed"),
    "the convicted are not left out": ("bounds shifted",),
    "signatures are not checked": ("forged relays",),
}
"""Where a mutant is looked for first; it is as good if another one notices."""


def catch(mutant: str) -> str:
    """The first that notices a mutant; empty if nothing does."""
    plays = {what.name: what for what in PLAYS}
    with made_wrong(mutant):
        for seed in range(3):
            for name in dict.fromkeys((*LIKELY.get(mutant, ()), *WAYS)):
                if name in plays and seed:
                    continue
                tally = play(plays[name], seed).tally if name in plays else attempt(name, seed).tally
                if tally.misses or tally.accused:
                    return f"play: {name}" if name in plays else f"liar: {name}"
    return ""
