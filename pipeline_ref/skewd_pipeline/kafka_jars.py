"""The Kafka broker's jars, fetched once with Maven where nobody has fetched them yet.

The problem: a real broker is 45 MB of jars that no Python package should carry. The insight: who has Java to run one
mostly has Maven, whose business is exactly this; the file that names the jars and their versions (``pom.xml``) comes
along. In a checkout the set-up fetches them (it runs this file); a run does it where the set-up did not, or where there
is no checkout.

What was fetched is kept: in the checkout's ``build``, else in the user's cache. It is complete or not there: Maven
writes into a directory beside, which is renamed at the end.

Limits: ``FETCH_LIMIT_S``. A machine where it failed (there is no way to a repository, mostly) is not asked again until
the named jars change or the note of it (``stamp``, beside the jars) is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from skewd_pipeline.broker_plan import kafka_version

FETCH_LIMIT_S = 300.0
POLL_S = 0.2
NOT_WANTED = "SKEWD_NO_KAFKA_BROKER"
_IN_PACKAGE = Path(__file__).with_name("kafka_pom.xml")
_IN_CHECKOUT = Path("pipeline_ref/kafka/pom.xml")


def pom() -> Path | None:
    """The file that names the jars; ``None`` where it was not installed."""
    from skewd_pipeline.corpus import repository_root  # here: the set-up runs this file before there are packages

    root = repository_root()
    candidates = [_IN_PACKAGE] if root is None else [_IN_PACKAGE, root / _IN_CHECKOUT]
    return next((path for path in candidates if path.is_file()), None)


def cache_libs() -> Path:
    """Where jars are kept outside of a checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skewd" / "kafka" / "libs"


def fetch(libs: Path, progress: Callable[[str], None] = lambda _: None, *, named: Path | None = None) -> str | None:
    """Fetches the jars into ``libs`` if they are not there and can be had; why not, or ``None`` when they are there.

    Args:
        progress: is told what is waited for. What it raises ends the waiting, and Maven.
        named: the file that names them; `pom` if not given.
    """
    if kafka_version(path.name for path in libs.glob("*.jar")) is not None:
        return None
    named = named or pom()
    maven = shutil.which("mvn")
    if maven is None:
        return "Maven, which would fetch them, is not on the PATH"
    if named is None:
        return "the file that names them was not installed"
    if os.environ.get(NOT_WANTED):
        return f"{NOT_WANTED} is set"
    wanted = hashlib.sha256(named.read_bytes()).hexdigest()
    stamp = libs.with_name("stamp")
    with contextlib.suppress(OSError):
        if stamp.read_text().split() == ["failed", wanted]:
            return f"fetching them failed before; remove {stamp} to try again"
    fresh = libs.with_name(f"{libs.name}.{os.getpid()}.new")
    try:
        fresh.parent.mkdir(parents=True, exist_ok=True)
        why = _copy(maven, named, fresh, progress)
        if why is None and kafka_version(path.name for path in fresh.glob("*.jar")) is None:
            why = "Maven fetched no broker"
        if why is None:
            shutil.rmtree(libs, ignore_errors=True)
            os.rename(fresh, libs)
        stamp.write_text(f"{'failed' if why else 'fetched'} {wanted}\n")
    except OSError as error:
        why = f"{libs} can't be written: {error.strerror}"
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return why


def _copy(maven: str, named: Path, into: Path, progress: Callable[[str], None]) -> str | None:
    """Runs Maven; what it complained of, or ``None``."""
    log = into.with_name(f"{into.name}.log")
    command = [maven, "-q", "-B", "-f", str(named), "dependency:copy-dependencies", f"-DoutputDirectory={into}"]
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={"MAVEN_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1", **os.environ},  # half the CPU time
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                deadline = time.monotonic() + FETCH_LIMIT_S
                while process.poll() is None:
                    progress("fetching Apache Kafka's jars with Maven (once, 45 MB)")
                    if time.monotonic() >= deadline:
                        return f"Maven took longer than {FETCH_LIMIT_S:.0f} s"
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.returncode == 0:
            return None
        lines = log.read_text(errors="replace").splitlines()
        return f"Maven says: {next((line for line in lines if 'ERROR' in line), (lines or ['nothing'])[-1])[:200]}"
    finally:
        log.unlink(missing_ok=True)


def main(libs: Path, named: Path) -> int:
    """What the set-up runs: jars that another file named are fetched anew, and a failure of before is forgotten."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that Maven is ended, too
    stamp = libs.with_name("stamp")
    with contextlib.suppress(OSError):
        if stamp.read_text().split() != ["fetched", hashlib.sha256(named.read_bytes()).hexdigest()]:
            shutil.rmtree(libs, ignore_errors=True)
            stamp.unlink()
    why = fetch(libs, named=named)
    if why is not None:
        print(why)
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
