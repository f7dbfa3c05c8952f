"""What is wrong with a node: one value for each thing, with a code that programs can rely on.

The problem: a sentence is read by a person once and by programs for years. A screen, a check, a metric, a log line
and a page that each take sentences apart disagree as soon as a sentence is improved.

The insight: a problem is a value. Its *code* is a stable word and never changes its meaning; its *severity* follows
from the code; its *subject* names the peer, source, link, file or key that it is about; its *text* says what is wrong
and its *remedy* what to do. Every output is derived from these values. Two problems are the same problem when code and
subject are the same, whatever ages and counts their texts name: that is what logs compare.

A problem is told while it lasts, and no longer: each part of the daemon derives its list anew from its present state.

Limits: ``PROBLEMS_MAX`` problems are told, the gravest first. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

PROBLEMS_MAX = 128


class Severity(StrEnum):
    """How grave a problem is."""

    INFO = "info"  # worth knowing; what is published is as good as it should be
    WARNING = "warning"  # something configured does not work, or bounds are worse than they could be
    CRITICAL = "critical"  # the node is not, or may not be, what its configuration asks for


class Problem(NamedTuple):
    """One thing that is wrong, or worth knowing.

    Attributes:
        code: one of ``CODES``.
        subject: the name of the peer, source, link, file or key that it is about; empty for the node itself.
        text: what is wrong, in one sentence without a full stop.
        remedy: what to do, in one sentence without a full stop; empty where there is nothing to do but wait.
    """

    code: str
    subject: str
    text: str
    remedy: str

    @property
    def severity(self) -> Severity:
        """As the code has it."""
        return CODES[self.code].severity

    @property
    def line(self) -> str:
        """``what is wrong; what to do``: for a line of text."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two tellings the same problem."""
        return self.code, self.subject

    def told(self) -> dict[str, str]:
        """As ``status --json`` has it."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "subject": self.subject,
            "text": self.text,
            "remedy": self.remedy,
        }


def of_error(code: str, subject: str, error: object) -> Problem:
    """The problem that an error's line tells of: ours all read ``what is wrong; what to do``."""
    text, _, remedy = " ".join(str(error).split()).partition("; ")
    return Problem(code, subject, text, remedy)


class Code(NamedTuple):
    """What a code means; documentation is made of this."""

    severity: Severity
    meaning: str


_I, _W, _C = Severity.INFO, Severity.WARNING, Severity.CRITICAL

CODES: dict[str, Code] = {
    "bad-mac": Code(_W, "messages failed authentication: they were altered, or made with another key"),
    "bound-too-wide": Code(_C, "the bound on the reference is wider than [clock] max_uncertainty"),
    "clockbound-off": Code(_W, "[clockbound] is enabled, and its segments cannot be written"),
    "clockbound-unknown": Code(_W, "ClockBound's clients are told 'unknown': the reference is not this host's UTC"),
    "clocks-contradict": Code(_W, "messages of the last hour excluded every state that the declared limits allow"),
    "config-refused": Code(_W, "the configuration was read again and is refused; the one before is in force"),
    "discipline-stopped": Code(_W, "another hand moved this clock, or it could not be set: skewd steers it no more"),
    "discipline-unable": Code(_W, "[discipline] is configured, and this process cannot steer the clock"),
    "discipline-waiting": Code(_W, "[discipline] is configured, and there is nothing to steer by, or another steers"),
    "dns-too-many": Code(_W, "[mesh] dns has more addresses than are used"),
    "dns-unresolved": Code(_W, "[mesh] dns cannot be resolved"),
    "dns-without-key": Code(_W, "[mesh] dns has addresses beyond loopback, and there is no key"),
    "drift-violated": Code(_W, "a pair of clocks drifts faster than declared, so bounds may be wrong"),
    "duplicate-name": Code(_W, "two nodes with different keys claim one name"),
    "equivocation": Code(_W, "a member signed two records with one number and different words"),
    "foreign-step": Code(_W, "somebody stepped the wall clock, and a source still speaks of the clock of before"),
    "frequency-left": Code(_W, "a skewd that died left the kernel's frequency changed, and it could not be restored"),
    "holdover": Code(_W, "the reference is silent; the bound holds and grows"),
    "internal-fault": Code(_W, "a part of skewd failed by its own fault; the rest goes on"),
    "joining": Code(_I, "listening which reference the mesh follows; this takes some seconds"),
    "kernel-alone": Code(_W, "UTC is known from the kernel's maxerror alone"),
    "key-file-refused": Code(_W, "the key file changed and cannot be used; the keys of before are in force"),
    "keyless-mesh": Code(_W, "the configuration says that this mesh has no key"),
    "leap-announced": Code(_I, "a leap second is announced; around it the bound is as wide as both readings of UTC"),
    "link-down": Code(_W, "a link does not work"),
    "link-fault": Code(_W, "skewd failed by its own fault in a message of a link; the message is dropped"),
    "malformed": Code(_W, "an authentic message said what no clock shows, or what no message can; it was refused"),
    "member-convicted": Code(_W, "a member lies about clocks and is left out"),
    "members-disputed": Code(_W, "members contradict each other, and nobody can be named"),
    "members-unvouched": Code(_W, "too few members vouch for some, so what those say does not count here"),
    "mesh-fault": Code(_W, "mesh code failed by its own fault; the node goes on with its first-hand bounds"),
    "name-contested": Code(_W, "two parties with different keys claim one name"),
    "nothing-to-compare": Code(_C, "no source and no peer is configured or found"),
    "old-protocol": Code(_I, "a peer speaks the version before of the mesh protocol, which rests on the shared key"),
    "own-address": Code(_I, "an address of [mesh] peers is this node itself; it is not asked"),
    "peer-unheard": Code(_W, "a configured peer was asked and has never answered since the start; others have"),
    "peers-lost": Code(_W, "peers were heard, and none is any more"),
    "peers-none-yet": Code(_W, "the list of peers, or the DNS name, has no address but this node's own"),
    "peers-unheard": Code(_C, "none of the configured peers was ever heard"),
    "publish-fault": Code(_C, "what should be published could not be made; unsynchronized is published instead"),
    "reference-disagreed": Code(_W, "not all members name the same reference (yet)"),
    "reference-unheard": Code(_C, "there is no bound on the node that is the reference"),
    "restart-needed": Code(_W, "something changed in the configuration that waits for a restart"),
    "segment-lost": Code(_C, "the file that readers take the clock from is gone, and can't be made anew"),
    "source-answer-lost": Code(_W, "a source on this machine answers, and its answers cannot come back"),
    "source-failing": Code(_W, "a source's last answer was no use, or did not come"),
    "source-falseticker": Code(_W, "a source contradicts the majority"),
    "source-fault": Code(_W, "skewd failed by its own fault in what a source said; the source is left out"),
    "source-found-unused": Code(_W, "a time daemon was found on this machine and is not used in a mesh"),
    "source-leap-announced": Code(_I, "a source announces a leap second"),
    "source-unreachable": Code(_W, "a source does not answer"),
    "source-unusable": Code(_W, "no source is configured, and one found on this machine makes no claim"),
    "sources-below-minimum": Code(_C, "fewer sources tell UTC than [utc] min_sources, so there is none"),
    "sources-disagree": Code(_C, "no majority of the sources tells which is right"),
    "sources-unheard": Code(_C, "no source has answered yet"),
    "state-not-kept": Code(_W, "the state directory is full, slow or cannot be written: what is known dies with skewd"),
    "time-daemons-compete": Code(_W, "more than one time daemon may set this clock (said by the command line)"),
    "utc-unknown": Code(_C, "the reference is utc, and neither this node nor enough others have it"),
    "version-mismatch": Code(_W, "a node speaks a version of the mesh protocol that is not understood or not accepted"),
    "virtual-clock": Code(_W, "a test's clock: this node's times are not this machine's"),
    "wander-violated": Code(_W, "a pair of clocks changes its rate faster than declared, so bounds may be wrong"),
    "wrong-key": Code(_W, "messages came with another mesh key"),
}
"""Every code there is. A code that was released is never given another meaning."""


def gravest_first(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once, critical ones first, in a stable order; at most ``PROBLEMS_MAX``.

    Where there are more, no code is lost: many subjects of one code give way before the only one of another.
    """
    once: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        once.setdefault(problem.identity, problem)
    order = list(Severity)[::-1]
    kept = list(once.values())
    if len(kept) > PROBLEMS_MAX:
        of_code: Counter[str] = Counter()
        place = []
        for problem in kept:
            place.append((of_code[problem.code] > 0, order.index(problem.severity), of_code[problem.code]))
            of_code[problem.code] += 1
        chosen = sorted(range(len(kept)), key=place.__getitem__)[:PROBLEMS_MAX]
        kept = [kept[number] for number in sorted(chosen)]
    return sorted(kept, key=lambda one: order.index(one.severity))
