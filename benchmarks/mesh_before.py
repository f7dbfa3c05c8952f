"""What a mesh costs now, against a checkout of before: ``python benchmarks/mesh_before.py CHECKOUT [--seconds 60]``.

The problem: the processor time of a daemon depends on the machine, on what else runs there, and on the minute. So two
whole meshes of real daemons run side by side, one from each checkout, and what each used is compared window by window:
whatever slows the one slows the other.

    python benchmarks/mesh_before.py ../before --nodes 8 --seconds 60 --windows 6

Each daemon measures all others over UDP on loopback once a second, under a mesh key, on a virtual clock, as shipped
otherwise. Told are milliseconds of processor time a second and node (all threads), and the ratio: the median of the
windows, and the range.

Limits: Linux (``/proc``). The checkouts must understand the same configuration and run with this Python.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NOW = Path(__file__).resolve().parent.parent
READY_S = 120.0
SETTLING_S = 30.0


def free_ports(count: int) -> list[int]:
    """UDP ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]


@contextlib.contextmanager
def mesh(checkout: Path, nodes: int, directory: Path) -> Iterator[list[int]]:
    """The process ids of a running mesh's daemons."""
    directory.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    key = directory / "mesh.key"
    keygen = [sys.executable, "-m", "skewd", "keygen", str(key)]
    subprocess.run(keygen, env=environment, check=True, capture_output=True)
    ports = free_ports(nodes)
    # Nobody here may set the machine's clock, whoever runs this.
    careful = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time"]
    prefix = careful if os.geteuid() == 0 and shutil.which("setpriv") else []
    daemons: list[subprocess.Popen[str]] = []
    try:
        for number, port in enumerate(ports):
            peers = ", ".join(f'"127.0.0.1:{other}"' for other in ports if other != port)
            file = directory / f"n{number}.toml"
            file.write_text(
                f'[node]\nname = "n{number}"\nruntime_dir = "{directory}/run{number}"\nstate_dir = "{directory}"\n'
                f'[mesh]\nlisten = "127.0.0.1:{port}"\nkey_file = "{key}"\npeers = [{peers}]\n'
                '[metrics]\nlisten = "off"\n'
            )
            command = [sys.executable, "-m", "skewd", "run", "--config", str(file), "--virtual-clock", "offset=1ms"]
            with (directory / f"n{number}.log").open("w") as log:
                daemons.append(
                    subprocess.Popen(
                        [*prefix, *command], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
                    )
                )
        for number, daemon in enumerate(daemons):
            assert daemon.stdout is not None
            if not daemon.stdout.readline():
                raise SystemExit(f"{checkout}: a daemon did not start: {(directory / f'n{number}.log').read_text()}")
        yield [daemon.pid for daemon in daemons]
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)


def used_ns(pids: list[int]) -> int:
    """Processor time of all threads of these processes so far."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("before", type=Path)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--windows", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skd") as name, contextlib.ExitStack() as stack:
        before = stack.enter_context(mesh(options.before.resolve(), options.nodes, Path(name) / "before"))
        after = stack.enter_context(mesh(NOW, options.nodes, Path(name) / "now"))
        time.sleep(SETTLING_S)
        rows = []
        was = used_ns(before), used_ns(after), time.monotonic()
        for _ in range(options.windows):
            time.sleep(options.seconds / options.windows)
            now = used_ns(before), used_ns(after), time.monotonic()
            each = (now[2] - was[2]) * options.nodes * 1e6
            rows.append(((now[0] - was[0]) / each, (now[1] - was[1]) / each))
            was = now
    ratios = [now / then for then, now in rows]
    print(f"{options.nodes} nodes, all measure all once a second; ms of processor time a second and node")
    print(f"  before {statistics.mean(then for then, _ in rows):7.3f}")
    print(f"  now    {statistics.mean(now for _, now in rows):7.3f}")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} windows"
    print(f"  ratio  {statistics.median(ratios):7.3f}  ({spread})")


if __name__ == "__main__":
    main()
