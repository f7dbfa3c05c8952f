"""The screen of `skewd status`: what a person must find on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skewd.status_view import ROWS_MAX, render_status
from skewd.watch import styled
from tests.cli.fake_daemon import status_of

SCREEN = """\
inference: synchronized
  how far       5.002 ms ahead of node:producer
  how sure      +-0.09 ms  (the reference lies -5.092ms to -4.912ms from here)
  last heard    0.3 s ago
  era           1, no step seen
  metrics       http://127.0.0.1:9956/metrics

nothing is wrong

no sources of UTC; [[source]] adds one

peer      address         offset     bound      best RTT  drift     heard      trust       state
producer  127.0.0.1:9957  -5.002 ms  +-0.09 ms  200us     +1.2 ppm  0.3 s ago  first-hand  synchronized
"""

EVERYTHING = """\
inference: holdover
  how far       1.20 ms behind utc
  how sure      +-0.43 ms  (the reference lies +784us to +1.622ms from here)
  drift         -12.4 ppm against the reference
  last heard    71.0 s ago
  limits        cannot tell yet against 1 of 2
  steered by    chronyd (pid 812)
  era           3, 2 steps seen in 10 h
  metrics       http://127.0.0.1:9956/metrics

what is wrong, and what to do
  ! holdover: the reference was last heard 71 s ago, the bound grows
  ! source far is unreachable
  ! 2 messages came with another mesh key
    -> all nodes of a mesh share one ([mesh] key_file)

source  type  offset    bound      best RTT  root              heard       answers   state
near    ntp   +1.20 ms  +-0.43 ms  800us     12us (stratum 1)  71.0 s ago  40 of 42  truechimer
far     ntp   -         -          -         -                 -           -         unreachable

peer      address        offset     bound      best RTT  drift     heard      trust       state
producer  10.0.0.7:9957  -5.002 ms  +-0.09 ms  200us     +1.2 ppm  0.3 s ago  first-hand  synchronized
consumer  10.0.0.9:9957  -          -          -         -         3 min ago  first-hand  pending

link  address        state  accepted  refused
udp   10.0.0.8:9957  up     4100      7 (replay 4, wrong_key 2, bad_mac 1)
zmq   ipc:///x.ipc   up     0         0
"""


MESH = """\
n1: synchronized
  how far       1.20 ms behind node:n0
  how sure      +-0.43 ms  (the reference lies +784us to +1.622ms from here)
  era           1, no step seen
  metrics       http://127.0.0.1:9956/metrics

what is wrong, and what to do
  ! n5 is convicted of lying about clocks and left out
    -> see what is wrong with it, or with its clock

mesh
  members       7; 6 of the others bounded, 3 asked from here
  reference     node:n0, NOT named by all
  carried on by n2, with n0's time
  convicted     n5
  disputed      n3, n4
  oldest record 12.3 s

no sources of UTC; [[source]] adds one

peer  address  link     offset    bound      best RTT  drift     heard      trust                        state
n2    n2:9957  udp+zmq  +1.20 ms  +-0.43 ms  200us     +1.2 ppm  0.3 s ago  first-hand, also via n3, n4  synchronized
n3    n3:9957  udp      +1.20 ms  +-0.43 ms  200us     +1.2 ppm  0.3 s ago  first-hand                   disputed
n5    -        -        -         -          -         -         -          composed                     convicted
n6    -        -        +1.20 ms  +-0.43 ms  -         +1.2 ppm  9.3 s ago  composed via n2, n3>n4       synchronized
  and 5 more members
"""


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (
            {"tai_offset_s": 37, "leap": "none", "rate_ppb": -12_400},
            "TAI - UTC 37 s; no leap second announced; steered at -12.4 ppm",
        ),
        (
            {"tai_offset_s": None, "leap": "insert"},
            "TAI - UTC not set; a leap second will be inserted at the end of the UTC day",
        ),
    ],
)
def test_the_kernels_scale_and_leap_state_are_shown(kernel: dict[str, Any], says: str) -> None:
    assert f"  kernel clock  {says}\n" in render_status(status_of(0, 0) | {"clock": {"kernel": kernel}})
    assert "kernel clock" not in render_status(status_of(0, 0) | {"clock": {"kernel": None}})


def observed(verdict: str) -> dict[str, Any]:
    """What is told of one pair's drift and wander."""
    one = {"verdict": verdict, "limit": 20, "at_least": 0, "at_most": 9, "window_s": 8, "age_s": 1}
    return {"contradicted_age_s": None, "drift": one, "wander": one}


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        (["within", "within"], "drift and wander within the limits against all 2"),
        (["within", "violated", "unknown"], "drift or wander violated against 1 of 3"),
    ],
)
def test_whether_the_limits_hold_is_said(verdicts: list[str], says: str) -> None:
    peer = status_of(0, 0)["peers"][0]
    peers = [{**peer, "assumptions": observed(verdict)} for verdict in verdicts]
    assert f"  limits        {says}\n" in render_status(status_of(0, 0, peers=peers))


def everything() -> dict[str, Any]:
    """A node with one of each."""
    near = {"name": "near", "type": "ntp", "offset_ns": 1_203_000, "lower_ns": 784_000, "upper_ns": 1_622_000}
    peer = status_of(-5_092_000, -4_912_000)["peers"][0]
    return {
        **status_of(784_000, 1_622_000, reference="utc"),
        "status": "holdover",
        "drift_ppb": -12_400,
        "age_s": 71.0,
        "era": 3,
        "uptime_s": 36_100.0,
        "sources": [
            {**near, "age_s": 71.0, "rtt_min_ns": 800_000, "root_distance_ns": 12_000, "stratum": 1}
            | {"state": "truechimer", "answers": {"used": 40, "timeout": 2, "unchanged": 7}}
            | {"assumptions": observed("unknown")},
            {"name": "far", "type": "ntp", "offset_ns": None, "lower_ns": None, "upper_ns": None, "age_s": None}
            | {"state": "unreachable"},
        ],
        "peers": [
            {**peer, "address": "10.0.0.7:9957", "assumptions": observed("within")},
            {"name": "consumer", "address": "10.0.0.9:9957", "age_s": 180.4, "trust": "first-hand", "state": "pending"},
        ],
        "links": [
            {
                "transport": "udp",
                "address": "10.0.0.8:9957",
                "counters": {"requests": 4100, "accepted": 4100, "bad_mac": 1, "wrong_key": 2, "replay": 4},
            },
            {"transport": "zmq", "address": "ipc:///x.ipc", "counters": {"accepted": 0, "unconfirmed": 1}},
        ],
        "messages": [
            "holdover: the reference was last heard 71 s ago, the bound grows",
            "source far is unreachable",
            "2 messages came with another mesh key; all nodes of a mesh share one ([mesh] key_file)",
        ],
    }


def test_a_node_with_a_peer() -> None:
    assert render_status(status_of(-5_092_000, -4_912_000, age_s=0.3) | {"age_s": 0.3}) == SCREEN


def test_a_node_with_everything_and_something_wrong() -> None:
    assert render_status(everything(), "chronyd (pid 812)") == EVERYTHING


def in_a_mesh() -> dict[str, Any]:
    """A member that knows others over one and over two links, through the mesh, and one that lies."""
    peer = status_of(784_000, 1_622_000)["peers"][0]
    unheard = {"address": None, "link": None, "rtt_min_ns": None, "trust": "composed"}
    unknown: dict[str, Any] = {
        "offset_ns": None,
        "lower_ns": None,
        "upper_ns": None,
        "drift_ppb": None,
        "age_s": None,
        "path": [],
    }
    narrowed = [["n2"], ["n3", "n2"], ["n4", "n2"]]
    return status_of(
        784_000,
        1_622_000,
        node="n1",
        reference="node:n0",
        peers=[
            {**peer, "name": "n2", "address": "n2:9957", "link": "udp+zmq", "path": narrowed},
            {**peer, "name": "n3", "address": "n3:9957", "link": "udp", "path": [["n3"]], "state": "disputed"},
            {**peer, **unheard, **unknown, "name": "n5", "state": "convicted"},
            {**peer, **unheard, "name": "n6", "age_s": 9.3, "path": [["n2", "n6"], ["n3", "n4", "n6"], ["n2", "n6"]]},
        ],
        peers_left_out=5,
        mesh={
            "members": 7,
            "bounded": 6,
            "asked": 3,
            "agreed": False,
            "timescale": {"origin": "n0", "epoch": 1, "keeper": "n2", "carried": True},
            "convicted": ["n5"],
            "disputed": ["n3", "n4"],
            "contested": [],
            "oldest_record_s": 12.31,
        },
        messages=["n5 is convicted of lying about clocks and left out; see what is wrong with it, or with its clock"],
    )


def test_a_member_of_a_mesh() -> None:
    assert render_status(in_a_mesh()) == MESH


def test_a_mesh_that_has_just_begun() -> None:
    screen = render_status(status_of(0, 0, mesh={"members": 1, "timescale": None, "oldest_record_s": None}))
    assert "\nmesh\n  members       1\n  reference     none yet\n\n" in screen


def test_colours_change_no_word() -> None:
    assert styled(MESH).plain == MESH
    assert "bold red" in {str(span.style) for span in styled("  convicted     n5\n").spans}
    text = styled(EVERYTHING)
    assert text.plain == EVERYTHING
    assert {str(span.style) for span in text.spans} >= {"green", "yellow", "red", "bold red", "cyan", "bold", "dim"}


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
    assert "near    ntp   +1 ns   +-6 ns  -         -     -      -        truechimer" in screen
    assert "udp   127.0.0.1:9957  up     -         0" in screen


def test_a_link_says_whether_it_works_and_which_way() -> None:
    links = [
        {"transport": "kafka", "address": "k:9092", "direction": "receive", "trouble": None, "counters": {}},
        {"transport": "kafka", "address": "l:9092", "direction": "send", "trouble": "no broker", "counters": {}},
    ]
    screen = render_status(status_of(0, 9, links=links))
    assert "kafka  k:9092   up, receives only  " in screen
    assert "kafka  l:9092   down, sends only   " in screen


def test_many_peers_are_counted_not_all_shown() -> None:
    peers = [{**status_of(0, 0)["peers"][0], "name": f"n{number}"} for number in range(ROWS_MAX + 7)]
    screen = render_status(status_of(0, 0, peers=peers))
    assert "and 7 more; see --json" in screen
    assert len(screen.splitlines()) < ROWS_MAX + 20


@pytest.mark.parametrize("status", [{}, {"peers": None}, {"peers": [{}], "sources": [{}], "links": [{}]}])
def test_little_is_shown_as_unknown(status: dict[str, Any]) -> None:
    assert "unknown against no reference" in render_status(status)


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
KEYS_OF_ROWS = ["name", "assumptions", "offset_ns", "lower_ns", "upper_ns", "rtt_min_ns", "drift_ppb", "age_s", "state"]
KEYS_OF_ROWS += ["trust", "link", "members", "timescale", "agreed", "oldest_record_s"]
ROW = st.dictionaries(st.sampled_from(KEYS_OF_ROWS), VALUE)
PATH = st.lists(VALUE | st.lists(VALUE, max_size=3), max_size=3)
NAMED = st.dictionaries(st.sampled_from(["path", "convicted", "disputed", "timescale"]), PATH | ROW, max_size=3)
ANYTHING = VALUE | st.lists(ROW | VALUE | NAMED, max_size=3) | ROW | NAMED


KEYS = ["node", "status", "reference", "peers", "sources", "links", "messages", "metrics", "age_s", "drift_ppb"]
KEYS += ["lower_ns", "upper_ns", "offset_ns", "virtual", "era", "uptime_s", "mesh", "peers_left_out"]


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
@example({"node": "a\x1b[2J", "reference": "\x00", "metrics": "\x07", "messages": ["\x1b]0;x\x07; do\u202e"]})
def test_whatever_a_daemon_says_the_screen_is_shown(status: dict[str, Any]) -> None:
    screen = render_status(status)
    assert screen.endswith("\n")
    assert all(letter.isprintable() or letter == "\n" for letter in screen)


@pytest.mark.parametrize(
    ("discipline", "says"),
    [
        ({"state": "steering", "rate_ppb": 12_345, "learned_ppb": 12_300}, "skewd, +12.3 ppm\n"),
        (
            {"state": "steering", "rate_ppb": -90_000, "learned_ppb": 10_000},
            "skewd, -90.0 ppm, of which -100.0 ppm lead it to the reference\n",
        ),
        (
            {"state": "holdover", "rate_ppb": 1_000, "learned_ppb": 1_000},
            "skewd, +1.0 ppm, kept while the reference is silent\n",
        ),
        ({"state": "steering", "rate_ppb": None}, "skewd\n"),
        ({"state": "watching", "rate_ppb": None}, "nobody seen here\n"),
        ({"state": "off"}, "nobody seen here\n"),
        (7, "nobody seen here\n"),
    ],
)
def test_who_steers_is_this_daemon_where_it_does(discipline: object, says: str) -> None:
    screen = render_status(status_of(0, 0, discipline=discipline), "nobody seen here")
    assert f"  steered by    {says}" in screen
