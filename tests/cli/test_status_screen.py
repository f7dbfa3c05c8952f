"""The screen of `skewd status`: what a person must find on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skewd.status_view import ROWS_MAX, render_status
from tests.cli.fake_daemon import status_of

SCREEN = """\
inference: synchronized
  how far       5.002 ms ahead of node:producer
  how sure      +-0.09 ms  (the reference lies -5.092ms to -4.912ms from here)
  last heard    0.3 s ago
  era           1
  metrics       http://127.0.0.1:9956/metrics

nothing is wrong

no sources of UTC; [[source]] adds one

peer      address         offset     bound      best RTT  drift     heard      trust       state
producer  127.0.0.1:9957  -5.002 ms  +-0.09 ms  200us     +1.2 ppm  0.3 s ago  first-hand  synchronized
"""


def test_a_node_with_a_peer() -> None:
    assert render_status(status_of(-5_092_000, -4_912_000, age_s=0.3) | {"age_s": 0.3}) == SCREEN


def test_what_is_wrong_stands_with_what_to_do() -> None:
    screen = render_status(status_of(None, None, messages=["no peer has answered yet; check that they run", "odd"]))
    assert "  ! no peer has answered yet\n    -> check that they run\n  ! odd\n" in screen
    assert "how far       unknown against node:producer" in screen


def test_a_virtual_clock_is_the_first_thing_said() -> None:
    assert render_status(status_of(0, 0, virtual=True)).startswith("*** VIRTUAL CLOCK")


def test_the_reference_itself() -> None:
    screen = render_status(status_of(0, 0, node="producer"))
    assert "this node is the reference" in screen
    assert "how sure" not in screen


def test_sources_and_links_have_their_tables() -> None:
    source = {"name": "near", "type": "ntp", "lower_ns": -5, "upper_ns": 7, "offset_ns": 1, "state": "truechimer"}
    link = {"transport": "udp", "address": "127.0.0.1:9957", "counters": {"bad_mac": 0}}
    screen = render_status(status_of(0, 9, sources=[source], links=[link]))
    assert "near    ntp   +1 ns   +-6 ns  -      truechimer" in screen
    assert "udp   127.0.0.1:9957" in screen


def test_many_peers_are_counted_not_all_shown() -> None:
    peers = [{**status_of(0, 0)["peers"][0], "name": f"n{number}"} for number in range(ROWS_MAX + 7)]
    screen = render_status(status_of(0, 0, peers=peers))
    assert "and 7 more; see --json" in screen
    assert len(screen.splitlines()) < ROWS_MAX + 20


@pytest.mark.parametrize("status", [{}, {"peers": None}, {"peers": [{}], "sources": [{}], "links": [{}]}])
def test_little_is_shown_as_unknown(status: dict[str, Any]) -> None:
    assert "unknown against no reference" in render_status(status)


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
ROW = st.dictionaries(
    st.sampled_from(["name", "offset_ns", "lower_ns", "upper_ns", "rtt_min_ns", "drift_ppb", "age_s", "state"]), VALUE
)
ANYTHING = VALUE | st.lists(ROW | VALUE, max_size=3)


KEYS = ["node", "status", "reference", "peers", "sources", "links", "messages", "metrics", "age_s", "drift_ppb"]
KEYS += ["lower_ns", "upper_ns", "offset_ns", "virtual", "era"]


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
@example({"node": "a\x1b[2J", "reference": "\x00", "metrics": "\x07", "messages": ["\x1b]0;x\x07; do\u202e"]})
def test_whatever_a_daemon_says_the_screen_is_shown(status: dict[str, Any]) -> None:
    screen = render_status(status)
    assert screen.endswith("\n")
    assert all(letter.isprintable() or letter == "\n" for letter in screen)
