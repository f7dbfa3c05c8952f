"""How fast records spread, and how old they are: ``python benchmarks/mesh_gossip.py [NODES ...]``.

The problem: each message carries about one record, and hundreds of owners make a new one each second. Rounds (each
node asks k = 8 others, one attachment each way) are counted until every node holds a record of every owner, and
after 60 rounds the ages of all held records are told, in rounds since they were made. No network and no clock: records
carry no edges here and the room is for one of them, so that only the choice of what to pass on is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.mesh.gossip import Gossip

ROUNDS = 60


def main(sizes: list[int]) -> None:
    print(f"{'nodes':>6} {'complete after':>15} {'age p50':>8} {'p99':>5} {'most':>5} {'sent by each, a round':>22}")
    for size in sizes:
        gossip = Gossip(size, edges=0, room=340)
        complete: int | None = None
        while gossip.round < ROUNDS:
            gossip.step()
            if complete is None and gossip.complete():
                complete = gossip.round
        ages = sorted(gossip.ages())
        told = "-" if complete is None else str(complete)
        print(
            f"{size:6} {told:>15} {ages[len(ages) // 2]:8} {ages[len(ages) * 99 // 100]:5} {ages[-1]:5} "
            f"{gossip.messages / size / ROUNDS:22.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [10, 50, 100, 200])
