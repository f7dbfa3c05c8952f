"""Who exists is what no f members could have made up: against brute force; and a first word is ready in time."""

from __future__ import annotations

import itertools
import random

import pytest

from skewd.bounds import confirm
from skewd.bounds.carry import Claim
from skewd.bounds.confirm import spread
from skewd.interval import Interval
from skewd.record_store import Accepted
from skewd.records import Edge, Record
from tests.mesh.fleet import Fleet
from tests.mesh.worlds import Member, make_record, member

Says = dict[str, list[str]]
CLAIM = Claim(Interval(0, 1), Interval(0, 0), 0, 0)


class Claims:
    """Members that say whom they have met."""

    def __init__(self, says: Says) -> None:
        choose = random.Random(1)
        names = sorted({*says, *itertools.chain(*says.values())})
        self.members: dict[str, Member] = {name: member(choose, name) for name in names}
        self.records: dict[str, Record] = {
            name: make_record(self.members[name], -1.0, [Edge(self.members[other].tag, CLAIM) for other in others])
            for name, others in says.items()
        }

    def confirmed(self, met: list[str], liars_max: int = 1, excluded: tuple[str, ...] = ()) -> set[str]:
        tags = {self.members[name].tag: name for name in met}
        return set(spread(tags, met, self.records, liars_max, excluded).values())


def brute_force(says: Says, met: list[str], liars_max: int) -> set[str]:
    """Those that are heard of whichever ``liars_max`` others are silent."""
    known = set(met)
    for name in says.keys() - known:
        others = sorted(says.keys() - {name})
        for silent in itertools.combinations(others, min(liars_max, len(others))):
            reached = [one for one in met if one not in silent]
            for one in reached:
                reached += [other for other in says[one] if other not in silent and other not in reached]
            if name not in reached:
                break
        else:
            known.add(name)
    return known


@pytest.mark.parametrize("liars_max", [1, 2])
def test_confirmed_is_who_no_few_could_have_made_up(liars_max: int) -> None:
    directly = apart = 0
    for seed in range(300):
        choose = random.Random(seed)
        names = [f"n{index}" for index in range(choose.randrange(4, 11))]
        says = {name: choose.sample(names, choose.randrange(0, min(5, len(names)))) for name in names}
        says = {name: [other for other in others if other != name] for name, others in says.items()}
        met = choose.sample(names, choose.randrange(liars_max, liars_max + 3))
        found = Claims(says).confirmed(met, liars_max)
        assert found == brute_force(says, met, liars_max), (seed, says, met)
        for name in found.difference(met):
            told = sum(name in says[other] for other in found)
            directly, apart = directly + (told > liars_max), apart + (told <= liars_max)
    assert directly > 30
    assert apart > 10


def test_a_chain_over_one_member_confirms_nobody() -> None:
    says: Says = {"a": ["x", "y"], "b": [], "x": ["y", "z"], "y": ["x", "z"], "z": ["x", "y"]}
    assert Claims(says).confirmed(["a", "b"]) == {"a", "b"}


def test_two_chains_with_nothing_in_common_confirm_who_is_at_their_end() -> None:
    says: Says = {"a": ["x"], "b": ["y"], "x": ["z"], "y": ["z"], "z": []}
    assert Claims(says).confirmed(["a", "b"]) == {"a", "b", "z"}
    assert Claims(says).confirmed(["a", "b"], excluded=("y",)) == {"a", "b"}


def test_an_earlier_chain_is_turned_aside_for_another_one() -> None:
    # Found first, a-x-z leaves no way for b, whose only one is over x; a has another.
    says: Says = {"a": ["x", "y"], "b": ["x"], "x": ["z"], "y": ["w"], "w": ["z"], "z": []}
    assert "z" in Claims(says).confirmed(["a", "b"])


def test_what_one_member_makes_up_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = [f"fake{index}" for index in range(60)]
    says: Says = {"a": made_up[:12], "b": ["c"], "c": ["b"]}
    says |= {name: random.Random(name).sample(made_up, 12) for name in made_up}

    def search(*_: object) -> bool:
        raise AssertionError("a search was begun")

    monkeypatch.setattr(confirm, "_apart", search)
    assert Claims(says).confirmed(["a", "b"]) == {"a", "b"}


def test_the_first_message_brings_a_record_along() -> None:
    # Of those that are asked rarely there is but one message for a minute.
    one, other = Fleet(["n0", "n1"], 1).members.values()
    boot = one.node.boot
    heard = other.membership.store.receive(
        one.membership.attach("n1", 1200), first_hand_owner="n0", received_raw_ns=0, first_hand_boot=boot
    )
    assert [outcome.record.owner for outcome in heard if isinstance(outcome, Accepted)] == ["n0"]


def test_those_behind_one_member_are_not_searched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = [f"z{index}" for index in range(100)]
    says: Says = {"a": ["p"], "b": ["q"], "p": ["c"], "q": ["c"], "c": behind[:12]}
    says |= {name: random.Random(name).sample(behind, 12) for name in behind}
    searched: list[bytes] = []
    search = confirm._apart

    def counted(target: bytes, claims: dict[bytes, list[bytes]], count: int) -> bool:
        searched.append(target)
        return search(target, claims, count)

    monkeypatch.setattr(confirm, "_apart", counted)
    assert Claims(says).confirmed(["a", "b"]) == {"a", "b", "c"}
    assert len(searched) <= 2
