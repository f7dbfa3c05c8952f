"""The patch's two twins side by side, and requests as odd as the wire format allows, from a seed or from a fuzzer.

Whatever one of them says of a body, the other must say too: the same bytes, the same counts, the same refusal to the
letter. So no oracle is needed, and nothing is too odd to be tried: the generator writes every construction that the
rules of ``skewd_sidecar.patch`` name, well-formed or not, from whatever makes its choices.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from skewd.bounds.history import UNSYNCHRONIZED, Correction, Status
from skewd.bounds.table import Piece, Table
from skewd_sidecar.kernel import Choice, Kernel, KernelMissing, PythonKernel, choose
from skewd_sidecar.patch import NAMES, Incoming, MalformedRequest, Mode, PatchOptions, Placement, Stamps
from tests.sidecar.otlp_wire import FIXED32, FIXED64, GROUP, LEN, VARINT, varint

T0 = 1_790_000_000_000_000_000
MAX = (1 << 64) - 1

PYTHON: Kernel = PythonKernel()
NATIVE: Kernel | None
try:
    NATIVE = choose(Choice.NATIVE)
    MISSING = ""
except KernelMissing as missing:
    NATIVE = None
    MISSING = str(missing)

Ask = Callable[[int], Correction]


def said(
    kernel: Kernel,
    body: bytes,
    logs: bool,
    options: PatchOptions,
    ask: Ask,
    table: Table | None,
    until_ns: int | None = None,
) -> Any:
    """All that a twin says of a body."""
    try:
        result = (kernel.logs if logs else kernel.traces)(body, options, ask, table, until_ns)
    except MalformedRequest as refusal:
        return str(refusal)
    assert result.spans == sum(result.actions.values())
    return result.body, result.actions


class Maker:
    """Makes requests, options and sources out of chance."""

    def __init__(self, chance: random.Random, damage: float = 0.01) -> None:
        self.chance = chance
        self.damage = damage
        """How likely a place where something malformed can be gets it."""

    def rarely(self, probability: float = 0.1) -> bool:
        return self.chance.random() < probability

    def field(self, number: int, kind: int, value: int | bytes) -> bytes:
        """A field, its tag and its length sometimes longer than they need be."""
        pad = self.chance.choice((1, 2)) if self.rarely(0.03) else 0
        tag = varint(number << 3 | kind, pad)
        if isinstance(value, int):
            if kind == VARINT:
                return tag + varint(value, 1 if value < 1 << 56 and self.rarely(0.05) else 0)
            return tag + value.to_bytes(8 if kind == FIXED64 else 4, "little")
        if kind == LEN:
            return tag + varint(len(value), self.chance.choice((1, 2, 3)) if self.rarely(0.05) else 0) + value
        end = number if not self.rarely(self.damage) else number + 1
        return tag + value + varint(end << 3 | 4)

    def unknown(self, numbers: tuple[int, ...] = ()) -> bytes:
        """A field nobody knows: another number, or one of ``numbers`` with a wire type that is not its own."""
        chance = self.chance
        number = chance.choice((*numbers, 100, 1000, (1 << 29) - 1))
        match chance.randrange(6):
            case 0:
                return self.field(number, VARINT, chance.choice((0, 1, 300, MAX)))
            case 1:
                return self.field(number + 200, FIXED64, chance.getrandbits(64)) if number < 1000 else b""
            case 2:
                return self.field(chance.choice((100, 1000)), LEN, chance.randbytes(chance.randrange(6)))
            case 3:
                return self.field(number, FIXED32, chance.getrandbits(32))
            case 4:
                depth = chance.choice((1, 2, 99, 100)) if self.rarely(0.2) else 1
                inner = b"".join(self.unknown() for _ in range(chance.randrange(3)))
                if self.rarely(self.damage):
                    depth = 101
                for _ in range(depth):
                    inner = self.field(number, GROUP, inner)
                return inner
            case _:
                return self.malformed() if self.rarely(self.damage * 6) else b""

    def malformed(self) -> bytes:
        return self.chance.choice(
            (
                b"\x02\x00",
                b"\x00",
                b"\x80\x00\x01",
                b"\x9a\x80\x80\x80\x80\x00\x00",
                b"\xf8\xff\xff\xff\x1f\x01",
                b"\x9a\x3e\x80\x80\x80\x80\x80\x00",
                b"\x98\x3e" + b"\x80" * 10 + b"\x01",
                b"\x98\x3e" + b"\xff" * 9 + b"\x7f",  # odd, but well-formed
                b"\x9e\x3e\x00",
                b"\x9f\x3e\x00",
                b"\x9c\x3e",
                b"\x9b\x3e",
                b"\x9a\x3e\x05abc",
                b"\x99\x3e1234567",
                b"\x98\x3e\x80",
                b"\x0a\xff\xff\xff\xff\x7f",
                b"\x12\xff\xff\xff\xff\x0f",
            )
        )

    def mixed(self, pieces: list[bytes], numbers: tuple[int, ...] = ()) -> bytes:
        """The pieces, sometimes in another order, with unknown fields between them."""
        if self.rarely(0.25):
            self.chance.shuffle(pieces)
        while self.rarely(0.15):
            pieces.insert(self.chance.randrange(len(pieces) + 1), self.unknown(numbers))
        return b"".join(pieces)

    def any_value(self, name: str) -> bytes:
        chance = self.chance
        if self.rarely(0.08):
            return self.mixed([self.any_value(name), self.any_value("")], (1, 2, 3))
        if name == "corrected" and not self.rarely():
            return self.field(2, VARINT, chance.choice((0, 1, 1, 2)))
        if name == "reference" and not self.rarely():
            return self.field(1, LEN, chance.choice((b"utc", b"node:other", b"\xff", "node:ä".encode())))
        if (name.endswith("offset_ns") or name.startswith("original")) and not self.rarely():
            near = chance.choice((T0, 0)) + chance.randrange(-(10**6), 10**6)
            return self.field(3, VARINT, chance.choice((near, chance.getrandbits(64))) % (1 << 64))
        if name == "status" and not self.rarely():
            return self.field(1, LEN, chance.choice((b"synchronized", b"holdover", b"unsynchronized")))
        if name == "node.name" and not self.rarely():
            return self.field(1, LEN, chance.choice((b"node-a", b"node-b")))
        return chance.choice(
            (
                b"",
                self.field(1, LEN, b"x" * chance.choice((0, 3, 200))),
                self.field(2, VARINT, 1),
                self.field(3, VARINT, 7),
                self.field(4, FIXED64, 1),
                self.field(5, LEN, b""),
                self.field(7, LEN, b"\x00"),
                self.field(8, VARINT, 1),
                self.malformed(),
            )
        )

    def key_value(self, prefix: str) -> bytes:
        chance = self.chance
        name = chance.choice(NAMES) if chance.random() < 0.6 else chance.choice(("mine", "", "http.method"))
        key = (prefix if not self.rarely() else "clock.").encode() + name.encode()
        if name == "http.method":
            key = chance.choice((b"http.method", b"k" * 130, b"\xff"))
        pieces = [self.field(1, LEN, key), self.field(2, LEN, self.any_value(name))]
        if self.rarely(0.08):
            pieces.insert(0, self.field(1, LEN, chance.choice((b"clock.status", b"other"))))
        if self.rarely(0.08):
            pieces.append(self.field(2, LEN, self.any_value(name)))
        if self.rarely(0.05):
            pieces.pop()
        return self.mixed(pieces, (1, 2))

    def attributes(self, number: int, prefix: str, corrected: float = 0.25) -> list[bytes]:
        made = [self.field(number, LEN, self.key_value(prefix)) for _ in range(self.chance.choice((0, 0, 1, 2, 5)))]
        if self.rarely(corrected):
            for name in ("corrected", "reference", "offset_ns", *(("end.offset_ns",) if self.rarely(0.3) else ())):
                key = self.field(1, LEN, (prefix + name).encode())
                made.append(self.field(number, LEN, key + self.field(2, LEN, self.any_value(name))))
        return made

    def time(self) -> int:
        chance = self.chance
        if self.rarely(0.15):
            return chance.choice((0, 0, 1, 5, MAX, MAX - 5, 1 << 63, (1 << 63) - 1))
        return T0 + chance.randrange(-(10**10), 10**10)

    def event(self) -> bytes:
        pieces = [self.field(1, FIXED64, self.time())] if not self.rarely() else []
        if self.rarely(0.1):
            pieces.append(self.field(1, FIXED64, self.time()))
        pieces.append(self.field(2, LEN, b"event"))
        return self.mixed(pieces, (1,))

    def record(self, logs: bool, prefix: str) -> bytes:
        numbers = (1, 6, 11) if logs else (7, 8, 9, 11)
        times = (1, 11) if logs else (7, 8)
        pieces = [] if logs else [self.field(1, LEN, b"t" * 16), self.field(2, LEN, b"s" * 8)]
        for number in times:
            if not self.rarely(0.05):
                pieces.append(self.field(number, FIXED64, self.time()))
            if self.rarely(0.05):
                pieces.append(self.field(number, FIXED64, self.time()))
        pieces += self.attributes(6 if logs else 9, prefix)
        if not logs:
            pieces += [self.field(11, LEN, self.event()) for _ in range(self.chance.choice((0, 0, 1, 2)))]
            pieces.append(self.field(16, FIXED32, 257))
        return self.mixed(pieces, numbers)

    def batch(self, logs: bool, prefix: str) -> bytes:
        pieces = []
        for _ in range(self.chance.choice((0, 1, 1, 1, 1, 2))):
            resource = self.attributes(1, prefix, 0.15)
            resource.append(self.field(1, LEN, self.field(1, LEN, b"service.name")))
            pieces.append(self.field(1, LEN, self.mixed(resource, (1,))))
        for _ in range(self.chance.choice((0, 1, 1, 2))):
            scope = [self.field(1, LEN, b"")]
            scope += [self.field(2, LEN, self.record(logs, prefix)) for _ in range(self.chance.choice((0, 1, 2, 3)))]
            pieces.append(self.field(2, LEN, self.mixed(scope, (2,))))
        return self.mixed(pieces, (1, 2))

    def request(self, logs: bool, prefix: str) -> bytes:
        body = self.mixed(
            [self.field(1, LEN, self.batch(logs, prefix)) for _ in range(self.chance.choice((0, 1, 1, 2)))], (1,)
        )
        if self.rarely(self.damage * 10) and body:
            damaged = bytearray(body)
            at = self.chance.randrange(len(damaged))
            match self.chance.randrange(4):
                case 0:
                    damaged[at] = self.chance.randrange(256)
                case 1:
                    del damaged[at : at + self.chance.randrange(1, 9)]
                case 2:
                    damaged[at:at] = self.chance.randbytes(self.chance.randrange(1, 4))
                case _:
                    del damaged[at:]
            body = bytes(damaged)
        return body

    def options(self) -> PatchOptions:
        chance = self.chance
        return PatchOptions(
            chance.choice((*Mode, Mode.TAG, Mode.REWRITE, Mode.REWRITE)),
            chance.choice(("node-a", "n" * 130, "näme")),
            chance.choice(("clock.", "clock.", "k" * 64)),
            chance.random() < 0.7,
            chance.choice(tuple(Placement)),
            chance.choice((Incoming.TRUST, Incoming.TRUST, Incoming.REPLACE)),
            chance.choice(tuple(Stamps)),
        )

    def correction(self) -> Correction:
        chance = self.chance
        if self.rarely(0.1):
            return UNSYNCHRONIZED
        offset = chance.choice((chance.randrange(-(10**7), 10**7), 0, 6, -6, -(1 << 63), (1 << 63) - 1, -T0))
        status = chance.choice((Status.SYNCHRONIZED, Status.SYNCHRONIZED, Status.HOLDOVER))
        reference = chance.choice(("utc", "utc", "node:other", "node:ä", None))
        return Correction(offset, chance.randrange(10**9), status, reference)

    def ask(self) -> Ask:
        """A source that says one thing before and another after a moment."""
        before, after = self.correction(), self.correction()
        if self.rarely(0.5):
            after = before
        moment = T0 + self.chance.randrange(-(10**10), 10**10)
        return lambda wall_ns: before if wall_ns < moment else after

    def until_ns(self) -> int | None:
        """What the clock reads, if somebody looked."""
        return None if self.rarely(0.5) else T0 + self.chance.randrange(-(10**10), 10**10)

    def table(self) -> Table | None:
        """A table with gaps, its lines steeper than real ones; mostly one that covers what is asked."""
        chance = self.chance
        if self.rarely(0.3):
            return None
        pieces = []
        at = T0 - 10**10
        while self.rarely(0.7):
            begin = at + chance.choice((0, 0, chance.randrange(10**9)))
            at = begin + chance.randrange(1, 10**10)
            middle = chance.randrange(-(10**6), 10**6)

            def line(of: int) -> tuple[int, int]:
                return of, chance.randrange(-(10**8), 10**8)

            applied_from = begin - chance.randrange(10**9)
            lower, upper = line(middle - 1000), line(middle + 1000)
            pieces.append(
                Piece(
                    begin,
                    at,
                    applied_from,
                    *line(middle),
                    lower,
                    chance.choice((lower, line(middle - 999))),
                    upper,
                    chance.choice((upper, line(middle + 1001))),
                    chance.choice((Status.SYNCHRONIZED, Status.HOLDOVER)),
                    chance.choice(("utc", "utc", "node:other")),
                )
            )
        return Table(pieces, chance.choice((10**9, 10**8, 10**6)))


def compare(
    body: bytes, logs: bool, options: PatchOptions, ask: Ask, table: Table | None, until_ns: int | None = None
) -> Any:
    """Both twins' answer.

    Raises:
        AssertionError: there are two.
    """
    assert NATIVE is not None, MISSING
    python = said(PYTHON, body, logs, options, ask, table, until_ns)
    native = said(NATIVE, body, logs, options, ask, table, until_ns)
    assert native == python, (body, logs, options)
    return python
