"""`skewd record` and `skewd replay` beside real daemons: what they keep, what they refuse, and what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd.api_client import NoDaemonError
from skewd.cli import main
from skewd.evidence import Begin, Cut, Fact, Learnt, Look, read
from skewd.publish.evidence_door import question
from skewd.publish.segment import SegmentReader
from skewd.recorder import Files, NotWrittenError, Recorder, Stream, facts_of, part, parts
from skewd.replay import replayed
from tests.cli.test_services import Service
from tests.evidence.worlds import SECOND, World, content_of
from tests.waiting import LIMIT_S, wait_until

EX_USAGE, EX_DATA = 64, 65


class Pair:
    """Two daemons, one with a virtual clock; the other's wall clock is the reference of both."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.services: list[Service] = []

    def file(self, name: str) -> Path:
        return self.directory / f"{name}.toml"

    def start(self, name: str, peers: str, *more: str, interval: str = "50ms") -> str:
        self.file(name).write_text(
            f'[node]\nname = "{name}"\nruntime_dir = "{self.directory}/{name}"\nstate_dir = "{self.directory}"\n'
            '[metrics]\nlisten = "off"\n'
            f'[mesh]\nlisten = "127.0.0.1:0"\ninterval = "{interval}"\nreference = "right"\n{KEY}peers = [{peers}]\n'
        )
        self.services.append(Service("run", "--config", str(self.file(name)), *more, directory=self.directory))
        return str(self.services[-1].ready()["mesh"])

    def both(self, drift: str = "20ppm") -> None:
        address = self.start("right", "")
        self.start("other", f'"{address}"', "--virtual-clock", f"offset=5ms,drift={drift}")

    def record(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "skewd", "record", *words, "--config", str(self.file("other"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        for service in self.services:
            service.close()


def _key() -> str:
    """The words that a mesh without a key needs, where this version knows them."""
    from skewd.config import MeshConfig

    return 'key = "none"\n' if "key" in MeshConfig.__struct_fields__ else ""


KEY = _key()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    try:
        yield made
    finally:
        made.close()


def facts_in(file: Path) -> list[Fact]:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        return list(read(opened))
    return []


def looks_in(file: Path) -> int:
    return sum(isinstance(fact, Look) for fact in facts_in(file)) if file.exists() and file.stat().st_size > 20 else 0


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def told(file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["replay", str(file), "--json", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


def test_what_is_replayed_is_what_the_daemon_published(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bounds in shared memory, as an application reads them, and bounds replayed, at the same raw instants."""
    pair.both()
    file = tmp_path / "out.skewd"
    recording = pair.record(str(file), "--every", "250ms")
    published: dict[int, tuple[int, int]] = {}
    reader = SegmentReader(tmp_path / "other" / "clock.shm")

    def collected() -> bool:
        knot = reader.latest
        if knot is not None and knot.bound is not None:
            published.setdefault(knot.raw_ns, (knot.bound.lo, knot.bound.hi))
        return looks_in(file) > 12

    wait_until(collected, "a dozen looks are recorded")
    reader.close()
    code, out, err = ended(recording)
    assert (code, err) == (0, ""), err
    assert "of 1 pairs" in out
    answer = told(file, capsys, "--bounds")
    assert answer["bounds"]["compared"] == answer["bounds"]["identical"] > 12
    assert answer["published"]["compared"] == answer["published"]["identical"] > 8
    assert answer["missed"] == answer["cut_bytes"] == 0
    rows = [row for row in answer["replayed"] if row["kind"] == "published" and row["raw_ns"] in published]
    assert len(rows) > 5
    narrower = 0
    for row in rows:
        lower_ns, upper_ns = published[row["raw_ns"]]
        # A reader that came late has a knot as what arrived later made it: narrower, never another one.
        assert row["lower_ns"] <= lower_ns <= upper_ns <= row["upper_ns"]
        narrower += (row["lower_ns"], row["upper_ns"]) != (lower_ns, upper_ns)
        # reference - wall: this clock was made 5 ms ahead, and gained 20 us a second since.
        assert row["lower_ns"] <= -5_000_000 + 100_000
    assert narrower < len(rows)
    (peer,) = answer["pairs"]
    assert peer["drift_lower_ppb"] <= -20_000 <= peer["drift_upper_ppb"]
    assert peer["contradictions"] == 0
    assert peer["kept"] < peer["proofs"]


def test_kill_9_leaves_what_was_written(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair.both()
    file = tmp_path / "out.skewd"
    recording = pair.record(str(file), "--every", "100ms")
    try:
        wait_until(lambda: looks_in(file) > 5, "some looks are recorded")
    finally:
        recording.kill()
        recording.communicate()
    before = told(file, capsys)
    assert before["bounds"]["identical"] > 5
    # Killed in the middle of a write: all before it is there, and said to be all there is.
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert 0 < told(file, capsys)["cut_bytes"] < 1 << 17
    # A record that is begun again overwrites nothing.
    file.write_bytes(whole)
    again = pair.record(str(file), "--duration", "1s", "--every", "100ms")
    _, err = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, err
    assert part(file, 1).read_bytes() == whole
    assert told(file, capsys)["bounds"]["identical"] > before["bounds"]["identical"]


def test_the_daemon_may_be_restarted(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair.both()
    file = tmp_path / "out.skewd"
    recording = pair.record(str(file), "--every", "100ms")
    wait_until(lambda: looks_in(file) > 2, "some looks are recorded")
    code, _ = pair.services[1].end(signal.SIGTERM)
    assert code == 0
    pair.services[1] = Service(
        "run", "--config", str(pair.file("other")), "--virtual-clock", "offset=5ms", directory=tmp_path
    )
    pair.services[1].ready()
    before = looks_in(file)
    wait_until(lambda: looks_in(file) > before + 3, "looks of the daemon that came after are recorded")
    code, _, err = ended(recording, signal.SIGINT)
    assert code == 0
    assert "went away; waiting" in err
    assert "is back; recording goes on" in err
    answer = told(file, capsys)
    assert answer["bounds"]["compared"] == answer["bounds"]["identical"] > before
    assert answer["runs"] == 2


def test_a_clock_beyond_its_limits_is_told_from_a_record(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2000 ppm, where a pair may do 200: proven with a figure, in the record as in the daemon."""
    pair.both("2000ppm")
    file = tmp_path / "out.skewd"
    recording = pair.record(str(file), "--every", "250ms")
    words = ["check", "--assumptions", "--config", str(pair.file("other"))]
    wait_until(lambda: main(words) == 2, "the daemon's check exits 2")
    assert "violated" in capsys.readouterr().out.splitlines()[-1]

    wait_until(lambda: looks_in(file) > 12, "a dozen looks are recorded")
    assert ended(recording)[0] == 0
    (peer,) = told(file, capsys, "--calibrate")["pairs"]
    assert peer["drift"]["verdict"] == "violated"
    assert 1_900_000 < peer["drift"]["at_least"] <= 2_100_000
    assert peer["drift"]["declare"] >= 2_000_000
    assert peer["contradictions"] > 0
    assert main(["replay", str(file), "--calibrate"]) == 0
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out
    assert "raise it on the node whose clock it is" in out
    assert main(["check", "--assumptions", "--record", str(file)]) == 2
    assert "violated against right: drift at least" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_only_its_own_user_and_root_get_evidence_and_only_so_many(pair: Pair, tmp_path: Path) -> None:
    pair.start("other", "")
    path = tmp_path / "other" / "proof.sock"

    def opened() -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.settimeout(LIMIT_S)
        one.connect(str(path))
        return one

    def asked(line: bytes = question(10**9)) -> bytes:
        with opened() as one:
            one.sendall(line)
            return one.recv(200)

    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    for nonsense in (question(7), question(10**15), b"GET / HTTP/1.0\r\n", b"\xff\n"):
        assert b"not understood" in asked(nonsense)
    assert asked(b"x" * 5_000 + b"\n") == b""
    held = []
    try:
        for _ in range(4):
            held.append(opened())
            held[-1].sendall(question(10**9))
            assert held[-1].recv(3) == b"ok\n"
        assert b"4 listen already" in asked()
        refused = pair.record(str(tmp_path / "out.skewd"), "--duration", "1s")
        _, err = refused.communicate(timeout=LIMIT_S)
        assert refused.returncode == 1
        assert "4 listen already" in err
        assert "\n" not in err.strip()
    finally:
        for one in held:
            one.close()
    wait_until(lambda: asked().startswith(b"ok\n"), "those that left made room")


def test_others_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: socket.socket, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refused)
    with pytest.raises(NoDaemonError, match="for root and the daemon's own user"):
        Stream(tmp_path / "proof.sock", 10**9)


def test_a_recorder_that_is_stopped_costs_the_daemon_nothing_but_a_queue(pair: Pair, tmp_path: Path) -> None:
    """SIGSTOP: the daemon goes on, and ends in time though somebody still listens."""
    pair.both()
    recording = pair.record(str(tmp_path / "out.skewd"), "--every", "100ms")
    try:
        wait_until(lambda: looks_in(tmp_path / "out.skewd") > 1, "it records")
        recording.send_signal(signal.SIGSTOP)
        assert main(["status", "--config", str(pair.file("other"))]) == 0
        code, _ = pair.services[1].end(signal.SIGTERM)
        assert code == 0
    finally:
        recording.kill()
        recording.communicate()


# -- without a daemon --------------------------------------------------------------------------------------------------


def some_facts(rounds: int = 6) -> list[Fact]:
    world = World(look_every_ns=10 * SECOND)
    world.run(3)
    world.tap.listen(world.listener)
    facts: list[Fact] = []
    for _ in range(rounds):
        world.run(60)
        facts += world.taken()
    return facts


def test_files_are_rotated_and_each_can_be_read_alone(tmp_path: Path) -> None:
    facts, file = some_facts(), tmp_path / "out.skewd"
    recorder = Recorder(Files(file, max_bytes=3_500, keep=3))
    for fact in facts:
        recorder.take([fact])
        recorder.flush()
    recorder.close()
    found = parts(file)
    assert found == [part(file, number) for number in (3, 2, 1, 0)]
    assert not part(file, 4).exists()
    assert sum(one.stat().st_size for one in found) < 4 * 6_000
    for one in found:
        alone = replayed(facts_of([one]))
        assert alone.compared == alone.identical
        assert {begin.name for begin in facts_in(one) if isinstance(begin, Begin)} == {"there", "near"}
    together = replayed(facts_of(found))
    assert together.compared == together.identical > 10
    assert all(summary.beginnings == 1 for summary in together.pairs.values())
    assert not any(isinstance(fact, Cut) for fact in facts_of(found))
    kept = [fact for fact in facts_of(found) if isinstance(fact, Learnt)]
    assert kept == [fact for fact in facts if isinstance(fact, Learnt)][-len(kept) :]


def test_a_file_that_is_not_ours_or_being_written_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine\n")
    with pytest.raises(NotWrittenError, match=r"is no evidence.*it is left as it is"):
        Files(file)
    assert file.read_text() == "mine\n"
    other = tmp_path / "out.skewd"
    files = Files(other)
    Recorder(files).take(some_facts(1)[:1])
    with pytest.raises(NotWrittenError, match="being written by another"):
        Files(other)
    files.close()
    Files(other)
    with pytest.raises(NotWrittenError, match="Is a directory"):
        Files(tmp_path)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    files = Files(tmp_path / "out.skewd")
    recorder = Recorder(files)
    facts = some_facts(1)
    recorder.take(facts[:1])
    assert files._file is not None
    files._file.close()
    files._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(NotWrittenError, match="No space left on device; what was written until then is good"):
        recorder.take(facts[1:])


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (None, EX_USAGE, "does not exist; make it with 'skewd record"),
        (b"", EX_DATA, "is no evidence"),
        (b"\x7fELF" + b"\0" * 100, EX_DATA, "is no evidence"),
        (content_of([])[:-1] + b"\x63", EX_DATA, "is evidence of version 99"),
        (content_of([]), EX_DATA, "holds nothing that can be read"),
        (content_of([]) + b"\xff" * 50, EX_DATA, "holds nothing that can be read"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_a_line(
    content: bytes | None, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.skewd"
    if content is not None:
        file.write_bytes(content)
    assert main(["replay", str(file)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err
    assert main(["check", "--assumptions", "--record", str(file)]) == 3
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["record", "x", "--every", "1ns"], "--every: '1ns' is not from 100ms to 1h"),
        (["record", "x", "--every", "5"], "'5' has no unit"),
        (["record", "x", "--max-bytes", "10"], "--max-bytes: 10 is too small"),
        (["record", "x", "--keep", "-1"], "--keep: -1 is not from 0"),
        (["record", "x", "--duration", "0s"], "is not above zero"),
        (["replay", "x", "--bounds"], "add --json"),
    ],
)
def test_words_that_make_no_sense(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == EX_USAGE
    assert says in capsys.readouterr().err


def test_no_daemon_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "skewd.toml"
    config.write_text(f'[node]\nruntime_dir = "{tmp_path}/none"\n')
    assert main(["record", str(tmp_path / "out.skewd"), "--config", str(config)]) == 1
    assert "no daemon" in capsys.readouterr().err
    assert not (tmp_path / "out.skewd").exists()
    assert main(["check", "--record", "x"]) == 3
    assert "--record goes with --assumptions" in capsys.readouterr().out


def test_the_written_bytes_come_out_within_seconds(tmp_path: Path) -> None:
    """What waits to be a full row of bits does not wait for ever: ``FLUSH_S``; here the time is made to pass."""
    file = tmp_path / "out.skewd"
    recorder = Recorder(Files(file))
    recorder.take(some_facts(1))
    before = file.stat().st_size
    recorder.flush()
    assert file.stat().st_size > before
    recorder.flush()
    assert recorder.written == file.stat().st_size
