"""What is the same for nearly every span of a batch, and who says it: the Resource, or each span (``Placement``).

A Resource is an identity to those who receive it: whatever of it changes makes another one, and of a status that comes
and goes a new service instance each time. So what we write there is the node's name alone. What a trusted Resource
says already stays, and every span says only what differs. Few combinations occur in a batch, so the bytes that each
leaves for a span to say are made once. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from skewd.bounds.history import Status
from skewd_sidecar.patch.attributes import FACTS, NODE, Attributes
from skewd_sidecar.patch.wire import Value


class Facts:
    """Those of the batch under way.

    Args:
        node: the node that made the stamps.
        on_resource: whether a Resource says what it can.
        own, resource: our attributes in bytes, for spans (or log records) and for Resources.
    """

    __slots__ = ("_facts", "_node", "_on_resource", "_own", "_resource", "_said", "inherited")

    def __init__(self, node: str, on_resource: bool, own: Attributes, resource: Attributes) -> None:
        self._node = node
        self._on_resource = on_resource
        self._own = own
        self._resource = resource
        # Facts that its Resource brought along, facts that it will carry (None until a span decides them), and for
        # what spans have in common with it or not, the bytes that remain for them to say.
        self.inherited: dict[str, Value] = {}
        self._facts: tuple[Value, ...] | None = None
        self._said: dict[tuple[str | None, Status, bool], bytes] = {}

    def begin(self, inherited: Iterable[tuple[str, Value]]) -> None:
        """A new batch, and the facts that its Resource brought along; of one that occurs twice the last counts."""
        self.inherited = dict(inherited)
        self._facts = None
        if self._on_resource:
            self._said = {}

    def said(self, reference: str | None, status: Status, corrected: bool) -> bytes:
        """The attributes with these facts, as far as the Resource does not say the same."""
        what = (reference, status, corrected)
        said = self._said.get(what)
        if said is None:
            own: tuple[str | bool | None, ...] = (reference, status.value, self._node, corrected)
            if self._on_resource and self._facts is None:
                self._facts = tuple(
                    self.inherited.get(name, fact if name == NODE else None)
                    for name, fact in zip(FACTS, own, strict=True)
                )
            theirs = self._facts if self._facts is not None else (None,) * len(FACTS)
            said = self._said[what] = b"".join(
                self._own.fact(name, fact)
                for name, fact, their in zip(FACTS, own, theirs, strict=True)
                if fact is not None and not (type(fact) is type(their) and fact == their)
            )
        return said

    def lacking(self) -> bytes:
        """The facts that the Resource of this batch has yet to be given."""
        if self._facts is None:
            return b""
        return b"".join(
            self._resource.fact(name, value)
            for name, value in zip(FACTS, self._facts, strict=True)
            if name not in self.inherited and isinstance(value, str | bool)
        )
