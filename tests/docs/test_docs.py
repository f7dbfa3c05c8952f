"""What the documentation points at exists: links, and the files that the map of the architecture names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skewd.problems import CODES

CHECKOUT = Path(__file__).parent.parent.parent
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("deploy/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    index = (CHECKOUT / "docs" / "index.md").read_text()
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index] == ["index.md"]


def named_files() -> list[str]:
    """The paths in the map of docs/architecture.md: each line names some, below the last folder that stands alone."""
    text = (CHECKOUT / "docs" / "architecture.md").read_text()
    block = next(block for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) if block.startswith("skewd/\n"))
    named, folder = [], ""
    for line in block.splitlines():
        if not line.startswith(" "):
            words = line.split("  ")[0].split()
            folder = words[0]
            named += words
            continue
        for word in line.split():
            if not word.endswith((".py", "/")):
                break
            named.append(folder + word)
    return named


def test_the_map_is_true() -> None:
    named = named_files()
    assert len(named) > 50
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


def test_the_map_is_complete_about_the_core_and_the_sidecar() -> None:
    named = set(named_files())
    for package in ("skewd", "sidecar/skewd_sidecar"):
        for file in (CHECKOUT / package).rglob("*.py"):
            if not file.name.startswith("__"):
                assert str(file.relative_to(CHECKOUT)) in named, f"docs/architecture.md does not say what {file} is"


def test_every_code_of_a_problem_is_documented() -> None:
    text = (CHECKOUT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (info|warning|critical) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(code, severity.value, meaning) for code, (severity, meaning) in CODES.items()]
