"""Looks for bodies on which the patch's twins differ, guided by which code the last ones reached: ``make fuzz``.

The generator of ``twins.py`` writes what its author thought of. This starts there and goes on with what nobody thought
of: libFuzzer (by way of atheris) keeps every mutation that reached code not reached before, in the Python twin, whose
bytecode is instrumented, and in the native one, which is built again with LLVM's coverage counters and with overflow
checks. Whatever either says of a body the other must say too, and what they make of it must itself be a body that a
second sidecar takes.

One in ``COST_EVERY`` is also made long, and what it costs is measured: time for each byte, and memory beyond what the
relay would have charged (``cost.py``). Some inputs are values of JSON, for which that is all that is asked.

Both tools are optional. Without cargo the Python twin is fuzzed by itself; without atheris the generator runs for as
long, unguided; either is said, here and in the report.

    python -m tests.sidecar.fuzz [--seconds 180] [--out docs/reports/fuzz.md]

Limits: bodies of ``BODY_MAX_BYTES``. A body that was found is kept in build/fuzz and named.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "fuzz"
MODULE = FOLDER / "module"
BODY_MAX_BYTES = 4096
SEEDS = 400
HEAD_BYTES = 3
"""Of an input: one byte chooses the signal, two the options, the source and its table; the rest is the body. With the
second bit of the first byte set, the rest is a value of JSON, and the second byte chooses where it stands."""
COST_EVERY = 64
INSTRUMENTED = 12
"""How many times slower Python is while its branches are counted."""

slower = 1

COUNTERS = (
    "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 "
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table "
    "-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on"
)


def try_one(data: bytes) -> None:
    """One input against both twins.

    Raises:
        AssertionError: they differ, or make of it what they would refuse.
    """
    from tests.sidecar import cost, twins

    if len(data) < HEAD_BYTES:
        return
    if data[0] & 2:
        if zlib.crc32(data) % (COST_EVERY // 4) == 0:
            cost.check_json(data[HEAD_BYTES:], data[1], slower)
        return
    logs = bool(data[0] & 1)
    maker = twins.Maker(random.Random(int.from_bytes(data[1:HEAD_BYTES], "big")))
    options, ask, table, until_ns = maker.options(), maker.ask(), maker.table(), maker.until_ns()
    body = data[HEAD_BYTES:]
    if twins.NATIVE is None:
        answer = twins.said(twins.PYTHON, body, logs, options, ask, table, until_ns)
    else:
        answer = twins.compare(body, logs, options, ask, table, until_ns)
    if not isinstance(answer, str):
        again = twins.said(twins.PYTHON, answer[0], logs, options, ask, table, until_ns)
        assert not isinstance(again, str), f"what was made is refused: {again}"
    if zlib.crc32(data) % COST_EVERY == 0:
        for kernel in (twins.PYTHON, twins.NATIVE):
            if kernel is not None:
                cost.check_protobuf(body, logs, options, ask, table, kernel, slower)


def seed(number: int) -> bytes:
    """One of the generator's requests, as an input; or a value of JSON."""
    from tests.sidecar import cost, twins

    if number % 16 == 5:
        value = cost.JSON_SEEDS[number // 16 % len(cost.JSON_SEEDS)]
        return bytes((2, number // 16 // len(cost.JSON_SEEDS) % 256, 0)) + value
    logs = number % 3 == 0
    head = bytes((logs,)) + number.to_bytes(HEAD_BYTES - 1, "big")
    options = twins.Maker(random.Random(number)).options()
    return head + twins.Maker(random.Random(~number)).request(logs, options.prefix)[:BODY_MAX_BYTES]


def child(arguments: list[str]) -> None:
    """The process that libFuzzer runs in, and ends."""
    global slower
    slower = INSTRUMENTED
    sys.path.insert(0, str(MODULE))
    import atheris

    with atheris.instrument_imports(include=["skewd_sidecar.patch", "skewd.bounds.table"]):
        import skewd_sidecar.patch  # noqa: F401

    def first(data: bytes) -> None:
        # libFuzzer is loaded by now, privately. The native twin counts into its tables, so they are made public first.
        if "skewd_native" not in sys.modules and any(MODULE.iterdir()):
            for library in Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so"):
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
            importlib.import_module("skewd_native")
        try_one(data)

    atheris.Setup([sys.argv[0], *arguments], first)
    atheris.Fuzz()


def native_with_counters() -> str:
    """Builds the native twin once more, for :data:`MODULE`; says what it is, or why there is none."""
    shutil.rmtree(MODULE, ignore_errors=True)
    MODULE.mkdir(parents=True)
    if shutil.which("cargo") is None or shutil.which("rustc") is None:
        return "as it is installed, if it is: cargo is not here to build it with counters"
    rust = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    target = re.search(r"^host: (\S+)$", rust, re.MULTILINE)
    assert target is not None, rust
    command = [sys.executable, "-m", "maturin", "build", "--release", "-q", "--interpreter", sys.executable]
    command += ["--manifest-path", str(ROOT / "sidecar" / "native" / "Cargo.toml"), "--target", target[1]]
    command += ["--target-dir", str(FOLDER / "target"), "--out", str(FOLDER / "wheel")]
    done = subprocess.run(
        command,
        env=os.environ | {"RUSTFLAGS": COUNTERS, "CARGO_PROFILE_RELEASE_LTO": "off"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"as it is installed, if it is: it cannot be built with counters ({done.stderr.strip()[-200:]})"
    for wheel in (FOLDER / "wheel").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(MODULE)
    return "built with LLVM's coverage counters and overflow checks"


def guided(seconds: int) -> tuple[int, dict[str, str], str]:
    """Runs libFuzzer: its exit code, figures, and the end of what it printed."""
    corpus = FOLDER / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir(parents=True)
    for number in range(SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed(number))
    command = [sys.executable, "-m", "tests.sidecar.fuzz", "--child", str(corpus), f"-max_total_time={seconds}"]
    command += ["-print_final_stats=1", f"-max_len={BODY_MAX_BYTES}", f"-artifact_prefix={FOLDER}/", "-timeout=20"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    said = re.findall(r"#(\d+)\s+(INITED|DONE|NEW|REDUCE|pulse).*?cov: (\d+) ft: (\d+) corp: (\d+)", done.stdout)
    figures: dict[str, str] = {}
    if said:
        began = next((each for each in said if each[1] == "INITED"), said[0])
        figures = {
            "inputs tried": said[-1][0],
            "edges reached by the seeds": began[2],
            "edges reached in the end": said[-1][2],
            "features (edges and how often) in the end": said[-1][3],
            "inputs kept": said[-1][4],
        }
    return done.returncode, figures, done.stdout[-3000:]


def unguided(seconds: int) -> tuple[int, dict[str, str], str]:
    """The generator, for as long."""
    end = time.monotonic() + seconds
    tried = 0
    chance = random.Random()
    while time.monotonic() < end:
        data = seed(chance.randrange(1 << 16))
        try:
            try_one(data)
        except BaseException as error:
            (FOLDER / "crash-unguided").write_bytes(data)
            return 1, {"inputs tried": str(tried)}, str(error)[-3000:]
        tried += 1
    return 0, {"inputs tried": str(tried)}, ""


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reports" / "fuzz.md")
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    atheris: Any = importlib.util.find_spec("atheris")
    if atheris is None:
        guidance, native = "none: atheris is not installed (pip install atheris)", "as it is installed, if it is"
        print(f"fuzz: guidance: {guidance}", flush=True)
        code, figures, said = unguided(asked.seconds)
    else:
        guidance, native = "libFuzzer, by way of atheris", native_with_counters()
        print(f"fuzz: native twin: {native}", flush=True)
        code, figures, said = guided(asked.seconds)
    result = (
        "no difference, nothing refused that was made, no crash" if code == 0 else "FOUND SOMETHING; see build/fuzz"
    )
    lines = [
        "# Fuzzing the patch's twins",
        "",
        f"`make fuzz`, {asked.seconds} s on one core. Both twins get the same bodies, options, sources and tables;",
        "what one says (bytes, counts, the text of a refusal) the other must say, and a second pass must take what was",
        f"made. One in {COST_EVERY} is made 256 KiB long: it may take no more memory than it would be charged for, and",
        "no more time for each byte than any other.",
        "",
        "| | |",
        "| --- | --- |",
        f"| result | {result} |",
        f"| guidance | {guidance} |",
        f"| native twin | {native} |",
        *(f"| {name} | {figure} |" for name, figure in figures.items()),
        "",
    ]
    asked.out.write_text("\n".join(lines))
    print("\n".join(lines))
    if code:
        print(said, file=sys.stderr)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
