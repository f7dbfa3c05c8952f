"""The link between two nodes: what messages prove about each other's clocks, and nothing else.

Nothing arrives before it leaves. A message that carries its send stamp proves one side of a bound when it arrives;
an answer that names it and says when it was received proves the other side. No symmetry of delays is assumed, and
whatever delays a message (a relay, a queue, an attacker) only widens. So each message carries its own send stamp
and answers the last one from the other side: both ends get both proofs, whoever asked::

    A                                     B
    T1 --- request, nonce a ------------> T2     B: T1 <= T2
    T4 <-- reply, nonce b, answers a, T2-- T3     A: T1 <= T2, T3 <= T4
    T1' -- request, nonce c, answers b, T4 ->     B: T3 <= T4, T1' <= T2'

All stamps are raw clocks, one unbroken raw clock per (boot, raw era). What keeps that true against replays:

- A nonce of ours is random, so who answers it has received it, after we sent it. An answer is *fresh*.
- A peer's boot and raw era are believed from a fresh message only, and a change of them only if the question was
  asked after the last fresh message of the former one. So an old boot's messages, whenever they are replayed, and
  whatever this node has forgotten, never replace the present one's.
- A replay within the same raw clock is a message that was delayed: true, and wider. Still it is used once only (a
  window of the peer's last send stamps), and what its sender said about itself never replaces newer words.

**One-way messages** are answered by nobody, and may be for everyone (Kafka, a publication). Each proves T1 <= T2 like
any other, so the same three rules make them safe: used only on a raw clock that a fresh message confirmed, over
whichever link of this daemon (:class:`Timebases`); otherwise counted (``one_way_unconfirmed``), for an old boot's is as
authentic as the present one's. A one-way message also lists the newest one-way messages that its sender received,
from anyone, over any of its links, and when. Who finds a nonce of its own there has a fresh answer, so two one-way
links in opposite directions, or one topic that all write and read, make whole exchanges. A broadcast's nonce is known
to all, and that takes nothing away: whoever answers it got it after it was sent, and says so under the mesh's key.
Several may answer one, each once.

**When the kernel sent it.** The send stamp in a message is user space's, made before the send, hence early: true, and
wider than need be. The kernel's own stamp is known afterwards. Of a message of ours, it takes the place of our stamp
in what the answer proves (:meth:`LinkProtocol.transmitted`); and the next message to that peer tells it, with the
nonce that it belongs to, for a second and narrower proof at the other end. It is safe for these reasons: the stamp is
made before the driver has the packet, and is carried to raw rounded down, so it is still not later than the departure;
it is told only in an authentic message on the same raw clock, which is used under the rules above, of a message that
was itself used; and it must lie between that message's own send stamp and the one of the message that tells it.

An *attachment* (what nodes tell each other beyond clocks) is handed on from fresh messages only, each once. It is as
large as the room allows: a reply is never larger than its request, so requests are padded where something may be
attached.

It is sans I/O: bytes, stamps and randomness come in; bytes and proofs come out. A peer is its authenticated name;
an address is only where to send, and the name behind it is learnt from its answers. Nothing from the network
raises, and every table is bounded: requests, answers, peers, addresses, sources, one-way messages.

**Without a key** whoever reaches a link could speak in it, so only who is configured is believed (:data:`Believes`):
an answer to a question that went to a configured address, and what comes from such an address. Others are answered,
for the answer says nothing that they could not read off this machine's clock, and nothing that they say is used.

**Who says so.** With ``member_keys`` every message that is believed is bound to its sender's own key: by a MAC that
only the two can make, or (one-way, for everybody) by a signature. Until a node knows the other's key its request is an
*introduction*: it is answered and not believed, like any request of a boot that has answered nothing yet, so an
introduction costs no message. The answer is bound already, to a nonce of ours. It repeats the send stamp that the
introduction arrived with; who introduced itself compares, and vouches for that stamp by its next request, which names
this answer. So the introduction's stamps are proofs in the end as well, and nobody else can have altered them. Which
key a name has, and what is believed of nodes that have none yet (the version before), ``member_keys.py`` says.

Limits: without ``member_keys`` (nodes of the version before) one secret is shared by all, and a member can speak in
another's name. Where nothing ever comes back, over no link at all, nothing becomes fresh, so nothing is proven. A
one-way message lists the newest 32 it answers: with more members than that on one topic, some wait for the next. A
signature (40 us) lies between a one-way message's stamp and its send, which widens what it proves by as much.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from skewd.keys import KeyRing, MeshKey
from skewd.links import wire
from skewd.links.limiter import Limiter
from skewd.links.timebases import Broadcast, Timebases
from skewd.links.wire import Kind, Message, Refused, Self, nonce_of
from skewd.member_keys import MemberKeys
from skewd.recent import Recent

__all__ = ["Attach", "Believes", "KnownPeer", "LinkProtocol", "Proofs", "Received", "Self", "Target", "Timebases"]

Attach = Callable[[str | None, int], bytes]
"""What to attach to a message for a peer (``None``: whoever gets it), in that many bytes at most."""

Believes = Callable[[str, str], bool]
"""Whether what comes from this address, in this node's name, may be believed: where no key says who is invited."""

_SECOND = 1_000_000_000
_REQUESTS_PER_ADDRESS = 8
_REPLIES_PER_PEER = 8
_UNCONFIRMED_REPLIES = 256
_WINDOW = 64
_RTT_SAMPLES = 64
_HEARD = 8  # a peer's last messages, for whose kernel stamp to come
_RTT_HORIZON_NS = 300 * _SECOND
# A nonce lets this many messages past the limiter: a genuine answer and its duplicates, not a flood that copies it.
_PASSES_PER_NONCE = 3
# After so many unanswered requests whoever lives at the address now may answer, under any name.
_UNANSWERED_BEFORE_ANYONE = 3

REASONS = (
    "oversized",  # longer than 1,400 bytes
    "truncated",  # shorter than a message
    "bad_magic",
    "bad_version",
    "bad_kind",
    "rate_limited",
    "wrong_key",  # another mesh key's id
    "bad_mac",  # altered on the way, or another secret
    "malformed",  # authentic, but says what can't be
    "own_message",  # our own, back to us: this node is in its own list of peers, or someone reflects
    "duplicate_name",  # another node with our name
    "stranger",  # without a key, and none of those that were configured: answered, and nothing of it used
    "wrong_receiver",  # meant for another node
    "former_identity",  # made for a key that this node had once: its sender will introduce itself again
    "other_identity",  # another key has this name
    "old_version",  # says not who it is, and has to
    "unbound",  # an answer or a one-way message with an identity that does not prove it
    "altered",  # our introduction did not arrive as we sent it
    "unknown_nonce",  # answers nothing that we (still) wait for
    "replay",  # used before
    "unconfirmed",  # a request from a boot or raw era that has answered nothing of ours yet: replied to, not used
    "one_way_unconfirmed",  # the same of a one-way message: not used
    "old_timebase",  # a late answer from a boot or raw era that has been replaced
    "own_clock_went_back",  # our stamps contradict themselves
    "too_many_peers",
)


@dataclass(frozen=True, slots=True)
class Proofs:
    """What one authentic message proves about a peer.

    Attributes:
        peer: the newest that the peer said about itself within this raw clock of its.
        link: which link, as ``udp`` or ``zmq``.
        address: as it was requested, or where the message came from.
        outgoing: pairs (sent by us on our raw clock, received by the peer on its raw clock), ns.
        incoming: pairs (sent by the peer on its raw clock, received by us on our raw clock), ns.
        rtt_ns: the path's round trip, the peer's holding time taken out, where this message completes one (or two:
            the shorter). Slightly negative values are possible: the two clocks' rates differ.
        attachment: what a fresh message brought beyond this; empty if nothing, or if the message was not fresh.
        asked: whether it was a fresh request: the peer measures this node by itself.
        public_key: the key that the peer proved to have; empty where it speaks the version before.
    """

    peer: Self
    link: str
    address: str
    outgoing: tuple[tuple[int, int], ...]
    incoming: tuple[tuple[int, int], ...]
    rtt_ns: int | None
    attachment: bytes = b""
    asked: bool = False
    public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Received:
    """What came of a message: proofs, or why not (one of ``REASONS``); and the reply to send, if one is due.

    ``reply`` takes our raw clock's reading just before the send and returns the bytes, to be sent to where the
    message came from. ``sender`` is who an authentic message is from; empty where it was not found to be one. Of an
    introduction (``unconfirmed``) it is what the message says.
    """

    proofs: Proofs | None = None
    reply: Callable[[int], bytes] | None = None
    error: str | None = None
    sender: str = ""

    @property
    def attachment(self) -> bytes:
        """What a fresh message of ``sender`` brought along; empty otherwise."""
        return b"" if self.proofs is None else self.proofs.attachment


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """A peer with which an exchange was completed lately.

    Attributes:
        described: the newest that the peer said about itself.
        address: where it is asked, or where it was last heard from.
        last_exchange_raw_ns: when its last fresh message arrived, on our raw clock.
        rtt_min_ns: the smallest round trip of the last 64 within five minutes, never negative; ``None`` if none.
    """

    name: str
    address: str
    boot: bytes
    raw_era: int
    described: Self
    last_exchange_raw_ns: int
    rtt_min_ns: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """An address that requests were sent to: who answers there, if anyone, and how many were not answered since."""

    address: str
    name: str | None
    unanswered: int


@dataclass(slots=True)
class _Request:
    address: str
    sent_ns: int
    best_ns: int  # when it left at the earliest: the kernel's stamp, once that is known
    receiver_key: bytes = b""  # the only one that can have read it; empty: an introduction
    passes: int = _PASSES_PER_NONCE


@dataclass(slots=True)
class _Reply:
    """A reply of ours and the request that it answered."""

    peer: str
    public_key: bytes
    timebase: tuple[bytes, int]
    request_nonce: bytes
    request_sent_ns: int
    request_received_ns: int
    request_used: bool
    sent_ns: int
    best_ns: int
    passes: int = _PASSES_PER_NONCE


@dataclass(slots=True)
class _Address:
    name: str | None = None
    public_key: bytes = b""
    unanswered: int = 0
    requests: deque[bytes] = field(default_factory=deque)
    answer: tuple[bytes, int] | None = None  # the last reply's nonce, and when we received it


@dataclass(frozen=True, slots=True)
class _Last:
    """A message of a peer that was used."""

    nonce: bytes
    sent_ns: int
    received_ns: int
    rtt_ns: int | None


@dataclass(slots=True)
class _Peer:
    described: Self
    described_at_ns: int  # the peer's send stamp of the message that said so
    address: str
    public_key: bytes
    heard_ns: int  # when its last fresh message came
    used_ns: int  # when the last that proved something did
    last: deque[_Last] = field(default_factory=lambda: deque(maxlen=_HEARD))
    seen: list[tuple[int, bytes]] = field(default_factory=list)  # the newest requests' (send stamp, nonce), ascending
    floor: tuple[int, bytes] | None = None  # nothing up to here is looked at again
    replies: deque[bytes] = field(default_factory=deque)
    rtts: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_RTT_SAMPLES))


class LinkProtocol:
    """One link of one node, towards any number of peers. Pure: not thread-safe, no clock, no socket.

    Args:
        link: its name in the proofs.
        key: the mesh's key or keys; ``None`` uses a key of zeros, for links that never leave this machine.
        describe: what this node says about itself, fresh. A changed boot or raw era forgets every open exchange.
        random: that many unguessable bytes.
        timebases: shared by the links of one daemon; its own, if not given.
        attach: what to attach to each message; nothing, and small requests, if not given. More than it was asked for
            is not attached, and counted (``attachments_dropped``).
        request_bytes: what requests are padded to, with ``attach``: as much may be attached to their replies.
        limiter: of what comes; its own, if not given.
        member_keys: who this node is and who the others are, shared by the links of one daemon. Without it this node
            speaks the version before.
        believes: where there is no key, who is believed; everybody, if not given.
        max_peers: peers kept at once; more are refused until one has been silent for ``peer_lifetime_ns``.
        request_lifetime_ns: an answer that comes later is not used.
        reply_lifetime_ns: how long a peer may take to its next request, for it to give us a round trip.
        on_fault: told by the shell what was raised, by a fault of the program's own, in the handling of a message.
    """

    def __init__(
        self,
        *,
        link: str,
        key: KeyRing | MeshKey | None,
        describe: Callable[[], Self],
        random: Callable[[int], bytes],
        timebases: Timebases | None = None,
        attach: Attach | None = None,
        request_bytes: int = wire.MAX_MESSAGE_BYTES,
        limiter: Limiter | None = None,
        member_keys: MemberKeys | None = None,
        believes: Believes | None = None,
        max_peers: int = 1024,
        request_lifetime_ns: int = 10 * _SECOND,
        reply_lifetime_ns: int = 120 * _SECOND,
        peer_lifetime_ns: int = 300 * _SECOND,
        on_fault: Callable[[Exception], None] | None = None,
    ) -> None:
        self.link = link
        self.on_fault = on_fault
        # Whoever does the I/O counts here too, so that one place tells all of a link.
        self.counters: dict[str, int] = dict.fromkeys(
            (
                "requests",
                "replies",
                "one_way",
                "accepted",
                "sharpened",
                "timebase_changes",
                "own_timebase_changes",
                "attachments_dropped",
                *REASONS,
            ),
            0,
        )
        if not wire.MIN_MESSAGE_BYTES <= request_bytes <= wire.MAX_MESSAGE_BYTES:
            raise ValueError(f"a request has {wire.MIN_MESSAGE_BYTES} to {wire.MAX_MESSAGE_BYTES} bytes")
        self._describe, self._random, self._attach = describe, random, attach
        self._member_keys = member_keys
        self._request_bytes = request_bytes if attach is not None else 0
        self.use_keys(key)
        self._timebases = Timebases(lifetime_ns=peer_lifetime_ns) if timebases is None else timebases
        self._max_peers = max_peers
        self._request_lifetime_ns, self._reply_lifetime_ns = request_lifetime_ns, reply_lifetime_ns
        self._peer_lifetime_ns = peer_lifetime_ns
        self._limiter = Limiter(max_known=2 * max_peers) if limiter is None else limiter
        self._believes = believes
        self._refused_lately: dict[str, Recent] = {}
        self._ours: tuple[bytes, int] | None = None
        self._said: Self | None = None
        self._packed = b""
        self._told: OrderedDict[str, wire.Answer] = OrderedDict()
        self._requests: OrderedDict[bytes, _Request] = OrderedDict()
        self._replies: OrderedDict[bytes, _Reply] = OrderedDict()
        self._unconfirmed: deque[bytes] = deque()
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._peers: dict[str, _Peer] = {}

    @property
    def keyed(self) -> bool:
        """Whether a key is set; without one a link must stay on this machine."""
        return 0 not in self._secrets

    def use_keys(self, key: KeyRing | MeshKey | None) -> None:
        """From now on send with this key (of several, the first), and accept all of these."""
        self._secrets = wire.secrets_of(key)
        self._sending_id = next(iter(self._secrets))

    @property
    def name(self) -> str:
        """This node's name."""
        return self._describe().name

    def prepare(self, address: str) -> Callable[[int], bytes]:
        """A request to ``address`` that lacks only its send stamp: read the raw clock, call it, send the bytes."""
        me = self._me()
        state = self._addresses.get(address)
        if state is None:
            state = self._addresses[address] = _Address()
            if len(self._addresses) > self._max_peers:
                self.forget(next(iter(self._addresses)))
        self._addresses.move_to_end(address)
        self._limiter.know(address)
        nonce = self._nonce()
        answers, received_ns = state.answer or (wire.NO_NONCE, 0)
        receiver = state.name or ""
        if state.unanswered >= _UNANSWERED_BEFORE_ANYONE and (not state.public_key or state.unanswered % 2):
            receiver = ""  # every other time only where it may be the answers that get lost: these still prove
        receiver_key = state.public_key if receiver else b""
        secret = self._secrets[self._sending_id]
        identity, pair = self._identity(receiver_key, secret)
        build = wire.draft(
            self._sending_id,
            secret,
            kind=Kind.REQUEST,
            nonce=nonce,
            answers=answers,
            received_ns=received_ns,
            sender=self._say(me),
            receiver=receiver,
            told=self._told.get(receiver),
            attachment=self._attachment(receiver or None, wire.MAX_ATTACHMENT_BYTES),
            size=self._request_bytes,
            identity=identity,
            pair=pair,
        )

        def stamped(now_raw_ns: int) -> bytes:
            self._expire(now_raw_ns)
            self._requests[nonce] = _Request(address, now_raw_ns, now_raw_ns, receiver_key)
            state.requests.append(nonce)
            if len(state.requests) > _REQUESTS_PER_ADDRESS:
                self._requests.pop(state.requests.popleft(), None)
            state.unanswered += 1
            self.counters["requests"] += 1
            return build(now_raw_ns)

        return stamped

    def request(self, address: str, now_raw_ns: int) -> bytes:
        """A request to ``address``, its send stamp ``now_raw_ns`` (our raw clock, read just before)."""
        return self.prepare(address)(now_raw_ns)

    def prepare_one_way(self, receiver: str = "") -> Callable[[int], bytes]:
        """A message that nobody replies to, for ``receiver`` or (empty) for everyone; as :meth:`prepare`.

        It answers the newest one-way messages that came, over any link with the same ``timebases``.
        """
        me = self._me()
        nonce = self._nonce()
        others = self._timebases.to_answer(receiver, me.timebase)
        secret = self._secrets[self._sending_id]
        identity, _ = self._identity(b"", secret)
        sign = None if self._member_keys is None else self._member_keys.sign
        room = wire.MAX_ATTACHMENT_BYTES - wire.ANSWER_BYTES * len(others)
        build = wire.draft(
            self._sending_id,
            secret,
            kind=Kind.ONE_WAY,
            nonce=nonce,
            sender=self._say(me),
            receiver=receiver,
            told=self._told.get(receiver),
            others=others,
            attachment=self._attachment(receiver or None, room - (0 if sign is None else wire.SIGNATURE_BYTES)),
            identity=identity,
            sign=sign,
        )

        def stamped(now_raw_ns: int) -> bytes:
            self._timebases.note_sent(nonce, receiver, me.timebase, now_raw_ns)
            self.counters["one_way"] += 1
            return build(now_raw_ns)

        return stamped

    def transmitted(self, nonce: bytes, sent_raw_ns: int) -> None:
        """The message of ours that has this nonce left at ``sent_raw_ns`` (our raw clock) *or later*.

        For a kernel's stamp, rounded down. It sharpens what the answer proves, and the peer is told.
        """
        sent: _Request | _Reply | Broadcast | None
        name: str | None
        if (request := self._requests.get(nonce)) is not None:
            sent, state = request, self._addresses.get(request.address)
            name = state.name if state is not None else None
        elif (reply := self._replies.get(nonce)) is not None:
            sent, name = reply, reply.peer
        else:
            broadcast = self._timebases.sent(nonce)
            sent, name = broadcast, None if broadcast is None else broadcast.receiver
        if sent is None or sent_raw_ns <= sent.best_ns:
            return
        sent.best_ns = sent_raw_ns
        if name is not None:
            self._told[name] = (nonce, sent_raw_ns)
            self._told.move_to_end(name)
            if len(self._told) > self._max_peers:
                self._told.popitem(last=False)

    def forget(self, address: str) -> None:
        """Ask ``address`` no more; its open requests are dropped."""
        state = self._addresses.pop(address, None)
        if state is not None:
            for nonce in state.requests:
                self._requests.pop(nonce, None)
            self._limiter.forget(address)

    def receive(
        self, data: bytes, address: str, received_raw_ns: int, sharpen: Callable[[int], int] | None = None
    ) -> Received:
        """What came of ``data``, which arrived from ``address`` at ``received_raw_ns`` (read just after).

        Never raises for anything in ``data``.

        Args:
            sharpen: of an authentic message: given ``received_raw_ns``, when it came at the latest; not later.
        """
        try:
            received = self._receive(data, address, received_raw_ns, sharpen)
        except Refused as refused:
            received = _REFUSALS.get(refused.reason) or Received(error=refused.reason)
        self.counters[received.error or "accepted"] += 1
        if received.error is not None:
            self._refused_lately.setdefault(received.error, Recent()).add(received_raw_ns)
        return received

    def refused_lately(self, reason: str, now_raw_ns: int) -> int:
        """How many messages were refused for this reason within the last minute."""
        recent = self._refused_lately.get(reason)
        return 0 if recent is None else recent.count(now_raw_ns)

    def asked_at(self, data: bytes) -> str | None:
        """The address to which this request of ours went, as it is configured; None for anything else."""
        request = self._requests.get(nonce_of(data))
        return None if request is None else request.address

    def peers(self, now_raw_ns: int) -> dict[str, KnownPeer]:
        """The peers that are known at ``now_raw_ns``, by name."""
        self._expire_peers(now_raw_ns)
        known = {}
        for name, peer in self._peers.items():
            rtts = [rtt for at, rtt in peer.rtts if now_raw_ns - at <= _RTT_HORIZON_NS]
            known[name] = KnownPeer(
                name=name,
                address=peer.address,
                boot=peer.described.boot,
                raw_era=peer.described.raw_era,
                described=peer.described,
                last_exchange_raw_ns=peer.heard_ns,
                rtt_min_ns=max(0, min(rtts)) if rtts else None,
            )
        return known

    def targets(self) -> tuple[Target, ...]:
        """The addresses that are asked."""
        return tuple(Target(address, state.name, state.unanswered) for address, state in self._addresses.items())

    def sizes(self) -> dict[str, int]:
        """How many entries each bounded table holds."""
        return {
            "requests": len(self._requests),
            "replies": len(self._replies),
            "addresses": len(self._addresses),
            "peers": len(self._peers),
            "sources": len(self._limiter),
            "timebases": len(self._timebases),
            "one_way": self._timebases.one_way,
        }

    # -- receiving

    def _receive(self, data: bytes, address: str, now_ns: int, sharpen: Callable[[int], int] | None) -> Received:
        keys = self._member_keys
        reason = wire.refusal(data)
        if reason is not None and (reason != "bad_version" or keys is None):
            raise Refused(reason)
        if not self._expected(data) and not self._limiter.admit(address, now_ns):
            raise Refused("rate_limited")
        if reason is not None:
            version = wire.version_of(data)
            if keys is not None and version is not None:
                keys.note_version(address, version, now_ns)
            raise Refused(reason)
        message = wire.decode(data, self._secrets, None if keys is None else partial(self._pair, keys, data, now_ns))
        bound = message.bound
        if keys is not None and message.signature:
            keys.check(message.public_key, message.signature, wire.signed_content(data), now_ns)
            bound = True
        if sharpen is not None:
            now_ns = sharpen(now_ns)
        me = self._me()
        self._expire(now_ns)
        if message.sender.name == me.name:
            ours = keys is None or not message.public_key or message.public_key == keys.public_key
            if ours and message.sender.boot == me.boot:
                raise Refused("own_message")
            if keys is not None:
                keys.duplicate(me.name, address, now_ns)
            raise Refused("duplicate_name")
        if message.receiver != me.name and (message.receiver or message.kind is Kind.REPLY):
            raise Refused("wrong_receiver")
        # An answer names a nonce that went to a configured address and nowhere else.
        unbidden = message.kind is not Kind.REPLY
        if unbidden and self._believes is not None and not self._believes(address, message.sender.name):
            if message.kind is Kind.ONE_WAY:
                raise Refused("stranger")
            return self._reply_unconfirmed(message, me, now_ns, len(data), stranger=True)
        if keys is not None:
            if message.public_key and not bound:
                if message.kind is not Kind.REQUEST:
                    raise Refused("unbound")
                return self._reply_unconfirmed(message, me, now_ns, len(data))
            try:
                keys.judge(message.sender.name, message.public_key, address, now_ns)
            except Refused as refused:
                if refused.reason == "old_version" and message.kind is Kind.REQUEST:
                    # So that the older one's operator is told as well.
                    return Received(None, lambda now_raw_ns: wire.notice(), refused.reason, message.sender.name)
                raise
        if message.kind is Kind.REPLY:
            return self._take_reply(message, me, address, now_ns)
        if message.kind is Kind.REQUEST:
            return self._take_request(message, me, address, now_ns, len(data))
        return self._take_one_way(message, me, address, now_ns)

    def _take_reply(self, message: Message, me: Self, source: str, now_ns: int) -> Received:
        request = self._requests.get(message.answers)
        if request is None:
            raise Refused("unknown_nonce")
        if now_ns < request.sent_ns:
            raise Refused("own_clock_went_back")
        if self._is_replaced(message, me, request.sent_ns, now_ns):
            raise Refused("old_timebase")
        if request.receiver_key and request.receiver_key != message.public_key:
            raise Refused("unknown_nonce")
        # An echo may also come where we did not introduce ourselves: somebody used our nonce to do it in our name.
        echoed_ns = request.sent_ns if request.receiver_key and message.echoed_ns is None else message.echoed_ns
        if message.public_key and echoed_ns != request.sent_ns:
            raise Refused("altered")
        peer = self._confirm(message, me, request.address, now_ns)
        self._requests.pop(message.answers)
        state = self._addresses.get(request.address)
        if state is not None:
            _discard(state.requests, message.answers)
            state.name, state.unanswered, state.answer = message.sender.name, 0, (message.nonce, now_ns)
            state.public_key = message.public_key
        self._limiter.know(source)
        self._describe_peer(peer, message)
        sent_ns = min(request.best_ns, now_ns)
        rtt_ns = (now_ns - sent_ns) - (message.sent_ns - message.received_ns)
        outgoing = ((sent_ns, message.received_ns),)
        return self._used(message, peer, request.address, now_ns, outgoing, (), rtt_ns, fresh=True)

    def _take_request(self, message: Message, me: Self, source: str, now_ns: int, size: int) -> Received:
        name, timebase = message.sender.name, message.sender.timebase
        reply = self._replies.get(message.answers)
        asked_by = (name, message.public_key, timebase)
        if reply is not None and (reply.peer, reply.public_key, reply.timebase) != asked_by:
            reply = None
        if reply is not None and now_ns < reply.sent_ns:
            raise Refused("own_clock_went_back")
        current = self._timebases.current(name, me.timebase, now_ns)
        fresh = reply is not None and not self._is_replaced(message, me, reply.sent_ns, now_ns)
        if not fresh and (current is None or current[0] != timebase or not self._is_pinned(message)):
            return self._reply_unconfirmed(message, me, now_ns, size)
        self._refuse_replay(message)
        outgoing: tuple[tuple[int, int], ...] = ()
        incoming: tuple[tuple[int, int], ...] = ()
        rtt_ns = None
        if reply is not None and fresh:
            peer = self._confirm(message, me, source, now_ns)
            self._limiter.know(source)
            self._replies.pop(message.answers, None)
            # The echo says when our reply came: that can't have been before it left.
            sent_ns = min(reply.best_ns, now_ns)
            outgoing = ((sent_ns, message.received_ns),)
            if not reply.request_used:
                incoming = ((reply.request_sent_ns, reply.request_received_ns),)
                peer.last.append(_Last(reply.request_nonce, reply.request_sent_ns, reply.request_received_ns, None))
            rtt_ns = (message.received_ns - reply.request_sent_ns) - (sent_ns - reply.request_received_ns)
        else:
            # Known through another link of this daemon, perhaps, and not yet here.
            peer = self._peer(message, source, now_ns)
        _note(peer, message)
        self._describe_peer(peer, message)
        build = self._reply(message, me, now_ns, peer.replies, _REPLIES_PER_PEER, size, used=True)
        return self._used(message, peer, source, now_ns, outgoing, incoming, rtt_ns, fresh=fresh, reply=build)

    def _take_one_way(self, message: Message, me: Self, source: str, now_ns: int) -> Received:
        name, timebase = message.sender.name, message.sender.timebase
        sent, received_ns = self._answered(message, me, now_ns)
        current = self._timebases.current(name, me.timebase, now_ns)
        fresh = sent is not None and not self._is_replaced(message, me, sent.sent_ns, now_ns)
        if not fresh and (current is None or current[0] != timebase or not self._is_pinned(message)):
            # Answered all the same, in our next one: that is how it can prove itself fresh.
            self._timebases.note_heard(message, me.timebase, now_ns)
            raise Refused("one_way_unconfirmed")
        self._refuse_replay(message)
        outgoing: tuple[tuple[int, int], ...] = ()
        rtt_ns = None
        if sent is not None and fresh:
            peer = self._confirm(message, me, source, now_ns)
            self._limiter.know(source)
            if name not in sent.answered:
                sent.answered.add(name)
                sent_ns = min(sent.best_ns, now_ns)
                outgoing = ((sent_ns, received_ns),)
                rtt_ns = (now_ns - sent_ns) - (message.sent_ns - received_ns)
        else:
            peer = self._peer(message, source, now_ns)
        _note(peer, message)
        self._describe_peer(peer, message)
        self._timebases.note_heard(message, me.timebase, now_ns)
        return self._used(message, peer, source, now_ns, outgoing, (), rtt_ns, fresh=fresh)

    def _answered(self, message: Message, me: Self, now_ns: int) -> tuple[Broadcast | None, int]:
        """The one-way message of ours that this one answers, and when its sender received it."""
        for nonce, received_ns in message.others:
            sent = self._timebases.sent(nonce)
            if (
                sent is not None
                and sent.ours == me.timebase
                and sent.sent_ns <= now_ns <= sent.sent_ns + self._request_lifetime_ns
                and len(sent.answered) < self._max_peers
            ):
                return sent, received_ns
        return None, 0

    def _used(
        self,
        message: Message,
        peer: _Peer,
        address: str,
        now_ns: int,
        outgoing: tuple[tuple[int, int], ...],
        incoming: tuple[tuple[int, int], ...],
        rtt_ns: int | None,
        *,
        fresh: bool,
        reply: Callable[[int], bytes] | None = None,
    ) -> Received:
        """What a message proves that has passed every rule, with what it tells of an earlier one."""
        # A stamp that follows shortens the round trip of an exchange that ended with this message.
        last = _Last(message.nonce, message.sent_ns, now_ns, None if message.kind is Kind.REQUEST else rtt_ns)
        if message.told is not None:
            earlier, told_ns = self._told_of(peer, message.told)
            if earlier is not None:
                self.counters["sharpened"] += 1
                incoming = (*incoming, (told_ns, earlier.received_ns))
                if earlier.rtt_ns is not None:
                    sharper_ns = earlier.rtt_ns - (told_ns - earlier.sent_ns)
                    rtt_ns = sharper_ns if rtt_ns is None else min(rtt_ns, sharper_ns)
        incoming = (*incoming, (message.sent_ns, now_ns))
        peer.last.append(last)
        peer.used_ns = now_ns
        if rtt_ns is not None:
            peer.rtts.append((now_ns, rtt_ns))
        attachment = message.attachment if fresh else b""
        asked = fresh and message.kind is Kind.REQUEST
        proofs = Proofs(
            peer.described, self.link, address, outgoing, incoming, rtt_ns, attachment, asked, message.public_key
        )
        return Received(proofs, reply, None, message.sender.name)

    def _told_of(self, peer: _Peer, told: wire.Answer) -> tuple[_Last | None, int]:
        """The peer's message that the stamp belongs to, if it makes that one's proof narrower."""
        nonce, told_ns = told
        for number, earlier in enumerate(peer.last):
            if earlier.nonce == nonce:
                del peer.last[number]
                return (earlier if told_ns > earlier.sent_ns else None), told_ns
        return None, told_ns

    def _refuse_replay(self, message: Message) -> None:
        peer = self._peers.get(message.sender.name)
        if peer is None or peer.described.timebase != message.sender.timebase:
            return
        if peer.public_key != message.public_key:
            return
        if _is_replay(peer, (message.sent_ns, message.nonce)):
            raise Refused("replay")

    def _reply_unconfirmed(
        self, message: Message, me: Self, now_ns: int, size: int, *, stranger: bool = False
    ) -> Received:
        """Answer, so that the sender's next request can prove itself fresh; believe nothing yet (a stranger never)."""
        waiting = (self._replies.get(nonce) for nonce in self._unconfirmed)
        if any(reply is not None and reply.request_nonce == message.nonce for reply in waiting):
            raise Refused("replay")
        reply = self._reply(
            message, me, now_ns, self._unconfirmed, _UNCONFIRMED_REPLIES, size, used=False, stranger=stranger
        )
        return Received(None, reply, "stranger" if stranger else "unconfirmed", message.sender.name)

    def _reply(
        self,
        message: Message,
        me: Self,
        received_ns: int,
        shelf: deque[bytes],
        limit: int,
        size: int,
        *,
        used: bool,
        stranger: bool = False,
    ) -> Callable[[int], bytes]:
        nonce = self._nonce()
        name = message.sender.name
        # Asked with a key, a node understands that key, whatever it has been told of rotations.
        secret = self._secrets[message.key_id]
        identity = pair = None
        if message.public_key:
            identity, pair = self._identity(message.public_key, secret, received_ns)
        introduced = pair is not None and not message.bound
        build = wire.draft(
            message.key_id,
            secret,
            kind=Kind.REPLY,
            nonce=nonce,
            answers=message.nonce,
            received_ns=received_ns,
            sender=self._say(me),
            receiver=name,
            # A stranger is told nothing that was for another, and nothing is kept of it, not even what it was told.
            told=(message.nonce, message.sent_ns) if introduced else None if stranger else self._told.get(name),
            attachment=self._attachment(None if stranger else name, size - wire.MIN_MESSAGE_BYTES),
            identity=identity,
            pair=pair,
        )

        def stamped(now_raw_ns: int) -> bytes:
            self._replies[nonce] = _Reply(
                name,
                message.public_key,
                message.sender.timebase,
                message.nonce,
                message.sent_ns,
                received_ns,
                used,
                now_raw_ns,
                now_raw_ns,
            )
            shelf.append(nonce)
            if len(shelf) > limit:
                self._replies.pop(shelf.popleft(), None)
            self.counters["replies"] += 1
            return build(now_raw_ns)

        return stamped

    def _identity(
        self, receiver_key: bytes, secret: bytes, now_ns: int | None = None
    ) -> tuple[wire.Identity | None, bytes | None]:
        """What a message says of our key, and the secret shared with its receiver (None: its key is not known)."""
        keys = self._member_keys
        if keys is None:
            return None, None
        pair = None
        if receiver_key:
            pair = keys.secret_with(receiver_key, secret, now_ns)
        return keys.identity(receiver_key, secret), pair

    def _pair(self, keys: MemberKeys, data: bytes, now_ns: int, identity: wire.Identity, key_id: int) -> bytes:
        if wire.claimed_receiver(data) != keys.name:
            raise Refused("wrong_receiver")
        return keys.secret_of(identity, self._secrets[key_id], now_ns)

    def _is_pinned(self, message: Message) -> bool:
        """Whether what was confirmed of this name was confirmed of this key."""
        return self._member_keys is None or self._member_keys.key_of(message.sender.name) == message.public_key

    def _attachment(self, name: str | None, room: int) -> bytes:
        if self._attach is None or room <= 0:
            return b""
        attachment = self._attach(name, room)
        if len(attachment) <= room:
            return attachment
        self.counters["attachments_dropped"] += 1
        return b""

    # -- what is known of peers

    def _is_replaced(self, message: Message, me: Self, asked_ns: int, now_ns: int) -> bool:
        """Whether a message that answers what we asked at ``asked_ns`` may be older than the peer's present clock."""
        current = self._timebases.current(message.sender.name, me.timebase, now_ns)
        return current is not None and current[0] != message.sender.timebase and asked_ns < current[1]

    def _confirm(self, message: Message, me: Self, address: str, now_ns: int) -> _Peer:
        peer = self._peer(message, address, now_ns)
        peer.heard_ns = now_ns
        if self._member_keys is not None:
            self._member_keys.confirm(message.sender.name, message.public_key, now_ns)
        self._timebases.confirm(message.sender.name, message.sender.timebase, me.timebase, now_ns)
        return peer

    def _peer(self, message: Message, address: str, now_ns: int) -> _Peer:
        """The peer's entry, new where it has none for this raw clock of its."""
        name = message.sender.name
        peer = self._peers.get(name)
        if peer is not None and (
            peer.described.timebase != message.sender.timebase or peer.public_key != message.public_key
        ):
            self.counters["timebase_changes"] += 1
            self._drop(name)
            peer = None
        if peer is None:
            if len(self._peers) >= self._max_peers:
                self._expire_peers(now_ns)
            if len(self._peers) >= self._max_peers:
                raise Refused("too_many_peers")
            peer = self._peers[name] = _Peer(
                message.sender, message.sent_ns, address, message.public_key, now_ns, now_ns
            )
        asked = self._addresses.get(peer.address)
        if asked is None or asked.name != name:
            peer.address = address
        return peer

    def _describe_peer(self, peer: _Peer, message: Message) -> None:
        if message.sent_ns >= peer.described_at_ns:
            peer.described, peer.described_at_ns = message.sender, message.sent_ns

    # -- ourselves, and forgetting

    def _me(self) -> Self:
        me = self._describe()
        if me.timebase != self._ours:
            if self._ours is not None:
                # Stamps of two raw clocks must never meet in one exchange.
                self.counters["own_timebase_changes"] += 1
                self._requests.clear()
                self._replies.clear()
                self._unconfirmed.clear()
                self._peers.clear()
                self._told.clear()
                for state in self._addresses.values():
                    state.requests.clear()
                    state.answer = None
            self._ours = me.timebase
        return me

    def _say(self, me: Self) -> bytes:
        if me is not self._said:
            self._said, self._packed = me, wire.packed(me)
        return self._packed

    def _nonce(self) -> bytes:
        nonce = self._random(wire.NONCE_BYTES)
        if len(nonce) != wire.NONCE_BYTES or nonce == wire.NO_NONCE:
            raise ValueError("the source of randomness gives no random bytes")
        return nonce

    def _expected(self, data: bytes) -> bool:
        """Whether ``data`` names a nonce of ours that still waits: nobody off the path can know one."""
        nonce = wire.answered_nonce(data)
        waiting = self._requests.get(nonce) or self._replies.get(nonce)
        if waiting is None or waiting.passes <= 0:
            return False
        waiting.passes -= 1
        return True

    def _expire(self, now_ns: int) -> None:
        while self._requests:
            nonce, request = next(iter(self._requests.items()))
            if now_ns - request.sent_ns <= self._request_lifetime_ns:
                break
            del self._requests[nonce]
            state = self._addresses.get(request.address)
            if state is not None:
                _discard(state.requests, nonce)
        while self._replies:
            nonce, reply = next(iter(self._replies.items()))
            if now_ns - reply.sent_ns <= self._reply_lifetime_ns:
                break
            del self._replies[nonce]
        while self._unconfirmed and self._unconfirmed[0] not in self._replies:
            self._unconfirmed.popleft()

    def _expire_peers(self, now_ns: int) -> None:
        silent = [name for name, peer in self._peers.items() if now_ns - peer.used_ns > self._peer_lifetime_ns]
        for name in silent:
            self._drop(name)

    def _drop(self, name: str) -> None:
        for nonce in self._peers.pop(name).replies:
            self._replies.pop(nonce, None)


_REFUSALS = {reason: Received(error=reason) for reason in REASONS}


def _discard(nonces: deque[bytes], nonce: bytes) -> None:
    if nonce in nonces:
        nonces.remove(nonce)


def _is_replay(peer: _Peer, stamp: tuple[int, bytes]) -> bool:
    if peer.floor is not None and stamp <= peer.floor:
        return True
    at = bisect_left(peer.seen, stamp)
    return at < len(peer.seen) and peer.seen[at] == stamp


def _note(peer: _Peer, message: Message) -> None:
    insort(peer.seen, (message.sent_ns, message.nonce))
    if len(peer.seen) > _WINDOW:
        peer.floor = peer.seen.pop(0)
