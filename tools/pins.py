"""The pins: ``requirements/*.txt``, written by uv from pyproject.toml, for every supported Python and machine at once.

They are kept in the repository, so they must name no host and no path of the machine that made them, and every line
needs a hash: what is unfit is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from tools.environment import MINORS, PINS, ROOT, fail, install_environment, say
from tools.setup import PROJECT

RUN = os.path.join(ROOT, "requirements", "run.txt")


def extras(project: str) -> list[str]:
    """The extras that pyproject.toml names, but for the one whose distribution is built here and is on no index."""
    section = re.search(r"^\[project\.optional-dependencies\]$(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    names = re.findall(r"^([\w-]+) *= *\[", section.group(1), re.MULTILINE) if section else []
    return [name for name in names if name != "native"]


def problem(text: str) -> str | None:
    """What makes a file of pins unfit to be kept: a host, a path of this machine, a line without hashes."""
    for line in text.splitlines():
        if "://" in line or re.search(r"(^|[\s@])(/|\.\./|file:)", line) or line.startswith("-"):
            return "it names a host or a path: " + line.strip()
    bare = [one.split()[0] for one in text.replace("\\\n", " ").splitlines() if one.strip() and "--hash=" not in one]
    return "no hash for " + ", ".join(bare) if bare else None


def write(arguments: list[str]) -> None:
    uv = shutil.which("uv")
    if uv is None:
        fail("pins are made by uv, which is not on PATH: install it (pip install uv) and run this again")
    common = ["--universal", "--python-version", "3.%d" % MINORS[-1], "--generate-hashes", "--only-binary", ":all:",
              "--no-annotate", "--no-header", "--no-emit-index-url", "--quiet"]  # fmt: skip
    with open(PROJECT, encoding="utf-8") as file:
        every = [word for name in extras(file.read()) for word in ("--extra", name)]
    for path, chosen in ((PINS, every), (RUN, ["--extra", "zmq", "--extra", "mesh", "--constraints", PINS])):
        command = [uv, "pip", "compile", PROJECT, *common, *chosen, *arguments, "--output-file", path]
        if subprocess.run(command, cwd=ROOT, env=install_environment(os.environ), stdout=subprocess.DEVNULL).returncode:
            fail("uv could not resolve pyproject.toml: see above")
        with open(path, encoding="utf-8") as file:
            unfit = problem(file.read())
        if unfit:
            fail("%s must not be kept: %s" % (path, unfit))
        say("wrote %s" % os.path.relpath(path, ROOT))
