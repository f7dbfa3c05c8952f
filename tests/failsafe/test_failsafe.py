"""Each cell of the campaign as a test: what a node under a fault says is compared with the truth, all the time."""

from __future__ import annotations

import pytest

from tests.failsafe import campaign, cells
from tests.failsafe.lab import Daemon, Lab, lacking, page
from tests.failsafe.not_yet import NOT_YET

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")
pytestmark = pytest.mark.skipif(bool(lacking()), reason=f"needs {lacking()}")

QUICK = {
    ("default", "nothing"),
    ("default", "stranger"),
    ("found", "foreign step"),
    ("one source", "dead sources"),
    ("one source", "stranger"),
    ("three sources", "liar first"),
    ("three sources", "dead resolver"),
    ("mesh", "dead peers"),
    ("mesh", "hostile member"),
    ("daemonset", "dead resolver"),
    ("hosts", "dead peers"),
    ("keyless", "nothing"),
    ("own clock", "nothing"),
}
"""One of each kind for every change; all the others are long."""


def _cell(config: str, fault: str) -> object:
    marks: list[pytest.MarkDecorator] = []
    if (config, fault) not in QUICK:
        marks.append(pytest.mark.long)
    if (config, fault) in NOT_YET:
        marks.append(pytest.mark.xfail(strict=True, reason=NOT_YET[config, fault]))
    if config == "link":
        marks.append(pytest.mark.skipif(_no_zmq(), reason="skewd[zmq] is not installed"))
    return pytest.param(config, fault, marks=marks, id=f"{config}-{fault}".replace(" ", "_"))


def _no_zmq() -> bool:
    try:
        import zmq  # noqa: F401
    except ImportError:
        return True
    return False


@pytest.mark.parametrize(("config", "fault"), [_cell(*cell) for cell in cells.EXPECTED])
def test_a_node_never_says_more_than_it_has(config: str, fault: str) -> None:
    result = cells.run(config, fault)
    assert not result.faults, "\n".join(result.faults)


def test_every_quick_cell_and_every_exception_is_a_cell() -> None:
    assert cells.EXPECTED.keys() >= QUICK
    assert cells.EXPECTED.keys() >= NOT_YET.keys()


def test_every_configuration_and_fault_is_played() -> None:
    assert {config for config, _ in cells.EXPECTED} == cells.CONFIGS.keys()
    assert {fault for _, fault in cells.EXPECTED} == cells.FAULTS.keys()


def test_the_judges_see_a_lie() -> None:
    """A node that takes its own clock for the reference, where UTC was asked for."""
    with Lab() as lab:
        text = cells.World(lab, "own clock").node.text
        clock = page(lab, "dan", 0)
        node = Daemon(lab, "dan", text.replace('"ann"', '"dan"'), clock, frozenset({"utc"}))
        node.start()
        looks = node.until(lambda look: look.word == "synchronized", "its own clock as the reference")
    assert any("which nobody asked for" in lie for lie in looks[-1].wrong), looks[-1]


def test_the_table_in_the_documentation_tells_of_every_fault() -> None:
    text = campaign.OPERATIONS.read_text()
    written = text[text.index(campaign.BEGIN) : text.index(campaign.END)]
    assert [what for _, _, what in cells.FAULTS.values() if f"| {what} |" not in written] == []
