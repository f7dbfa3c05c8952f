"""The configuration in force, as TOML that could be loaded again, with where each value came from beside it.

"Why does it do that?" is answered by one screen: every key, whether anyone wrote it or not. A key that is not set
stands in a comment, since TOML has no word for that. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any

from skewd.config import Loaded, how_written
from skewd.config_keys import SECTIONS, TABLES
from skewd.lean import msgspec

_COLUMN = 44


def show_config(loaded: Loaded) -> str:
    """The whole configuration as TOML text, each line with its origin in a comment."""
    where = f"file {loaded.path}" if loaded.path is not None else "no file"
    lines = [f"# in force: {where}, environment, defaults"]
    for section in SECTIONS:
        value = getattr(loaded.config, section)
        if section in TABLES:
            origin = loaded.origins[section]
            if not value:
                lines += ["", _line(f"# [[{section}]]", f"{origin}: none")]
            for item in value:
                lines += ["", _line(f"[[{section}]]", origin)]
                lines += [_key(section, key, getattr(item, key), None) for key in item.__struct_fields__]
        else:
            lines += ["", f"[{section}]"]
            for field in msgspec.structs.fields(SECTIONS[section]):
                origin = loaded.origins[f"{section}.{field.name}"]
                lines.append(_key(section, field.name, getattr(value, field.name), origin))
    return "\n".join(lines) + "\n"


def _key(section: str, key: str, value: object, origin: str | None) -> str:
    written = how_written(section, key, value)
    if written is None:
        return _line(f"# {key} =", f"{origin}: not set" if origin else "not set")
    return _line(f"{key} = {_toml(written)}", origin)


def _line(text: str, origin: str | None) -> str:
    return f"{text:<{_COLUMN}} # {origin}" if origin else text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # A TOML basic string escapes as JSON does, but for DEL, which JSON leaves bare.
    return re.sub("\x7f", r"\\u007f", json.dumps(str(value), ensure_ascii=False))
