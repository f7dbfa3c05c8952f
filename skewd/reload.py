"""What of a changed configuration a running daemon takes up, and what it can't.

On SIGHUP the configuration is read again, whole, and checked as at the start. A mistake anywhere in it changes nothing:
the one before stays in force, and the mistake is said. What the bounds rest on (the declared limits, the key, the
addresses that others know this node by, the directories that readers have open) can't change under those who rely on
it, so it waits for a restart, and that is said as well. The rest is taken up at once: peers, sources, the log's level,
and how wide a bound may be. ``[check]``, ``[sidecar]`` and ``[spool]`` belong to other commands, which read them anew
each time they start. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from skewd.config import Config
from skewd.lean import msgspec

LIVE = ("source", "utc.min_sources", "mesh.peers", "clock.max_uncertainty", "log.level")
"""What is taken up while running."""

_OTHERS = ("check", "sidecar", "spool")
_TABLES = ("source", "link")


class Plan(NamedTuple):
    """What a reload comes to.

    Attributes:
        config: the configuration that can be in force now.
        changed: the keys that are taken up.
        restart: the keys that differ from what is in force, and need a restart.
    """

    config: Config
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def plan(running: Config, wanted: Config) -> Plan:
    """What becomes of the configuration that is in force when another one is wanted."""
    changed: list[str] = []
    restart: list[str] = []
    sections: dict[str, object] = {}
    for section in Config.__struct_fields__:
        old, new = getattr(running, section), getattr(wanted, section)
        if section in _OTHERS:
            sections[section] = new
        elif section in _TABLES:
            if old != new:
                (changed if section in LIVE else restart).append(section)
            sections[section] = new if section in LIVE else old
        else:
            taken: dict[str, object] = {}
            for key in old.__struct_fields__:
                if getattr(old, key) != getattr(new, key):
                    name = f"{section}.{key}"
                    # Without a socket there is nothing to ask the first peers by.
                    live = name in LIVE and (name != "mesh.peers" or running.mesh.listen is not None)
                    if live:
                        taken[key] = getattr(new, key)
                    (changed if live else restart).append(name)
            sections[section] = msgspec.structs.replace(old, **taken)
    return Plan(msgspec.structs.replace(running, **sections), tuple(changed), tuple(restart))
