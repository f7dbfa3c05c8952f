"""The example configuration is what people copy: it must be complete, true about defaults, and accepted."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from skewd.config import how_written, load_config, parse_config
from skewd.config_keys import SECTIONS, TABLES, Config

EXAMPLE = Path(__file__).parent.parent.parent / "systemd" / "skewd.toml"


def uncommented(text: str) -> str:
    """The example with every setting in force: prose begins with '# ', settings with '#'."""
    return re.sub(r"^#(?=[^\s])", "", text, flags=re.MULTILINE)


def test_as_shipped_it_changes_nothing() -> None:
    assert load_config(EXAMPLE, {}) == Config()


def test_with_every_setting_uncommented_it_is_accepted() -> None:
    text = uncommented(EXAMPLE.read_text())
    # Some keys of a link mean something for one transport only, and are refused for others, and a mesh has a key or
    # none: only these lines exclude each other.
    others = r'^(key = |topic|properties|stream|directory = "/dev/shm).*\n'
    text = re.sub(others, "", text, flags=re.MULTILINE)
    config = parse_config(text.encode(), EXAMPLE, {}).config
    assert config.mesh.peers == ("192.0.2.11:9957", "192.0.2.12:9957")


def test_it_explains_every_key() -> None:
    written = tomllib.loads(uncommented(EXAMPLE.read_text()))
    for section, struct in SECTIONS.items():
        value = written[section][0] if section in TABLES else written[section]
        assert set(value) == set(struct.__struct_fields__), section
    assert list(written) == list(SECTIONS)


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in TABLES and name != "node"])
def test_what_it_calls_a_default_is_one(section: str) -> None:
    written = tomllib.loads(uncommented(EXAMPLE.read_text()))[section]
    defaults = SECTIONS[section]()
    for key in msgspec.structs.asdict(defaults):
        shown = how_written(section, key, getattr(defaults, key))
        if shown not in (None, [], (), "off") or section == "discipline":
            assert written[key] == shown, f"[{section}] {key}"


def test_config_check_accepts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "skewd", "config", "check", str(EXAMPLE)],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
