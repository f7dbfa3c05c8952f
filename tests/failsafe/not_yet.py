"""Cells that are known not to be fail-safe: today (``NOT_YET``, with the reason), and before all this (``BEFORE``)."""

from __future__ import annotations

NOT_YET: dict[tuple[str, str], str] = {}
"""A test of such a cell is expected to fail, and fails when it does not."""

BEFORE: dict[tuple[str, str], str] = {
    ("default", "nothing"): "not told: nothing-to-compare",
    ("default", "stranger"): "synchronized on aaa, which nobody asked for",
    ("default", "no state"): "no problem names the state directory",
    ("found", "stranger"): "it did not come back: synchronized on node:aaa, check 2",
    ("found", "foreign step"): "the offset to utc is -N ns, outside [-5061788, -4939164]",
    ("found", "suspend"): "the offset to utc is -N ns, outside [-5152208, -4847907]",
    ("found", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("found", "no state"): "no problem names the state directory",
    ("one source", "stranger"): "it did not come back: synchronized on node:aaa, check 2",
    ("one source", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("one source", "no state"): "no problem names the state directory",
    ("three sources", "stranger"): "it did not come back: synchronized on node:aaa, check 2",
    ("three sources", "suspend"): "it did not come back: unsynchronized on utc, check 0",
    ("three sources", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("three sources", "no state"): "no problem names the state directory",
    ("mesh", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("mesh", "no state"): "no problem names the state directory",
    ("hosts", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("hosts", "no state"): "no problem names the state directory",
    ("daemonset", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("daemonset", "no state"): "no problem names the state directory",
    ("keyless", "nothing"): "not told: keyless-mesh",
    ("keyless", "stranger"): "not told: keyless-mesh",
    ("keyless", "foreign step"): "not told: keyless-mesh",
    ("keyless", "suspend"): "not told: keyless-mesh",
    ("keyless", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("keyless", "no state"): "no problem names the state directory",
    ("own clock", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("own clock", "no state"): "no problem names the state directory",
    ("link", "hung disk"): "the daemon answers nobody while the disk hangs",
    ("link", "no state"): "no problem names the state directory",
    ("found", "step while away"): "the offset to utc is -N ns, outside [-5090151, -4909810]",
    ("mesh", "alone again"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("hosts", "alone again"): "it has not what it asks for, and says: synchronized on utc, check 0, /readyz 200",
    ("daemonset", "alone again"): (
        "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200"
    ),
    ("link", "alone again"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("mesh", "silent peers"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("hosts", "silent peers"): "it has not what it asks for, and says: synchronized on utc, check 0, /readyz 200",
    ("daemonset", "silent peers"): (
        "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200"
    ),
    ("keyless", "silent peers"): (
        "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200"
    ),
    ("found", "small step"): "the offset to utc is -N ns, outside [-5049264, -4951184]",
    ("one source", "no network"): "not told: sources-below-minimum",
    ("one source", "dead sources"): "not told: sources-below-minimum",
    ("one source", "silent sources"): "not told: sources-below-minimum",
    ("one source", "refusing sources"): "not told: sources-below-minimum",
    ("one source", "lost servers"): "not told: sources-below-minimum",
    ("one source", "local servers"): "it has not what it asks for, and says: synchronized on utc, check 0, /readyz 200",
    ("three sources", "no network"): "not told: sources-below-minimum",
    ("three sources", "dead sources"): "not told: sources-below-minimum",
    ("three sources", "silent sources"): "not told: sources-below-minimum",
    ("three sources", "refusing sources"): "not told: sources-below-minimum",
    ("three sources", "lost servers"): "not told: sources-below-minimum",
    ("three sources", "local servers"): (
        "it has not what it asks for, and says: synchronized on utc, check 0, /readyz 200"
    ),
    ("hosts", "no network"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("hosts", "dead sources"): "it has not what it asks for, and says: synchronized on node:bob, check 0, /readyz 200",
    ("hosts", "silent sources"): (
        "it has not what it asks for, and says: synchronized on node:bob, check 0, /readyz 200"
    ),
    ("hosts", "refusing sources"): (
        "it has not what it asks for, and says: synchronized on node:bob, check 0, /readyz 200"
    ),
    ("hosts", "lost servers"): "it has not what it asks for, and says: synchronized on node:bob, check 0, /readyz 200",
    ("hosts", "local servers"): "it has not what it asks for, and says: synchronized on node:bob, check 0, /readyz 200",
    ("three sources", "liar first"): "it did not come back: unsynchronized on utc, check 0",
    ("hosts", "liar first"): "before a majority had answered: synchronized on node:bob, check 0",
    ("mesh", "dead peers"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("mesh", "no network"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("mesh", "lost peers"): "it has not what it asks for, and the check is OK: holdover on node:bob",
    ("mesh", "other key"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("mesh", "dead resolver"): "it does not end when it is told to",
    ("hosts", "dead peers"): "it has not what it asks for, and says: synchronized on utc, check 0, /readyz 200",
    ("hosts", "lost peers"): "it has not what it asks for, and the check is OK: holdover on node:bob",
    ("hosts", "other key"): "it has not what it asks for, and says: synchronized on utc, check 0, /readyz 200",
    ("hosts", "dead resolver"): "it does not end when it is told to",
    ("daemonset", "lost peers"): "it did not come back: synchronized on node:ann, check 0",
    ("daemonset", "other key"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("daemonset", "dead resolver"): "it does not end when it is told to",
    ("keyless", "dead peers"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("keyless", "lost peers"): "it has not what it asks for, and the check is OK: holdover on node:bob",
    ("keyless", "hostile member"): "not told: keyless-mesh",
    ("link", "dead peers"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("link", "no network"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("link", "lost peers"): "it has not what it asks for, and the check is OK: holdover on node:bob",
    ("link", "other key"): "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200",
    ("daemonset", "dead peers"): (
        "it has not what it asks for, and says: synchronized on node:ann, check 0, /readyz 200"
    ),
    ("one source", "dead resolver"): "it does not end when it is told to",
    ("three sources", "dead resolver"): "it does not end when it is told to",
    ("mesh", "hostile reference"): "it ended with 1: struct.error in the segment's writer",
    ("hosts", "hostile reference"): "it ended with 1: struct.error in the segment's writer",
}
"""What was wrong when the same cells were played on the version before the daemon was made fail-safe."""
