"""The sidecar's native kernel, compiled where cargo is.

It makes the sidecar cheaper and nothing else, so it may be missing. The insight for a short set-up: the extension is
built for every CPython from 3.11 on at once, so cargo needs no Python at all, and compiles while the packages are
installed; what comes out is one file, which is then put into ``.venv``. A wheel, for other machines, is maturin's.

The limits: nothing but the module goes into ``.venv``, so pip does not list it there.
"""

from __future__ import annotations

import glob
import os
import shutil

from tools.environment import BUILD, PYTHON, ROOT, VENV, run

CRATE = os.path.join(ROOT, "sidecar", "native")
MANIFEST = os.path.join(CRATE, "Cargo.toml")
TARGET = os.path.join(BUILD, "native", "target")
COMMAND = ["cargo", "build", "--lib", "--release", "--manifest-path", MANIFEST, "--target-dir", TARGET]
VARIABLES = {"PYO3_NO_PYTHON": "1", "PYO3_BUILD_EXTENSION_MODULE": "1"}  # as maturin does


def sources() -> list[str]:
    """All that the kernel is built from."""
    inside = glob.glob(os.path.join(CRATE, "src", "**", "*.rs"), recursive=True)
    return [path for path in [MANIFEST, *sorted(inside)] if os.path.isfile(path)]


def install() -> None:
    """Put what cargo built into ``.venv``."""
    (packages,) = glob.glob(os.path.join(VENV, "lib", "python3*", "site-packages"))
    into = os.path.join(packages, "skewd_native.abi3.so")
    # Under another name first: a sidecar may be running from the old one.
    shutil.copyfile(os.path.join(TARGET, "release", "libskewd_native.so"), into + ".new")
    os.replace(into + ".new", into)


def wheel(out: str) -> str | None:
    """Build the wheel into ``out``; why not, if not."""
    if shutil.which("cargo") is None:
        return "cargo is not here"
    maturin = os.path.join(VENV, "bin", "maturin")
    return run([maturin, "build", "--release", "--manifest-path", MANIFEST, "--interpreter", PYTHON, "--target-dir",
                TARGET, "--out", out], os.path.join(BUILD, "wheel.log"))  # fmt: skip
