"""The report as a browser shows it: at a phone's width and a desk's, in light and dark, its console silent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from skewd_pipeline import report
from tests.experiment.made_results import demo, failing, made_page, over_time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (375, 1280)

# The page in frames of each width: what it measures itself comes out in the dumped document.
FRAMES = """<!doctype html><meta charset="utf-8"><body><pre id="found"></pre><script>
const found = {}, frames = [...document.querySelectorAll("iframe")];
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const inner = frame.contentDocument, root = inner.documentElement, width = frame.clientWidth;
    for (const folded of inner.querySelectorAll("details")) folded.open = true;
    const style = frame.contentWindow.getComputedStyle(inner.body);
    const outside = [...inner.querySelectorAll("main *")].filter(each => !each.closest(".wide") && !each.closest("svg")
      && each.getBoundingClientRect().right > width + 1 && each.getBoundingClientRect().width > 0);
    const sizes = (what, side) =>
      [...inner.querySelectorAll(what)].map(each => each.getBoundingClientRect()[side]).filter(size => size > 0);
    const drawn = sizes("svg", "width");
    const cut = [...inner.querySelectorAll("svg text")].filter(each => {
      const word = each.getBoundingClientRect(), picture = each.closest("svg").getBoundingClientRect();
      return picture.width > 0 && (word.left < picture.left - 1 || word.right > picture.right + 1
        || word.top < picture.top - 1 || word.bottom > picture.bottom + 1);
    });
    const captions = sizes("caption span", "right");
    found[width] = {
      captions: Math.max(0, ...captions), cut: cut.map(each => each.textContent),
      scroll: root.scrollWidth, paper: style.backgroundColor, ink: style.color,
      outside: outside.map(each => each.tagName + " " + each.className),
      drawn: drawn.length, widest: Math.max(...drawn), smallest: Math.min(...sizes("svg text", "height")),
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>FRAMES</body>"""


def looked_at(page: str, scheme: str, directory: Path) -> tuple[dict[str, Any], str]:
    """What the browser measures, by width, and what it said on its console."""
    frames = "".join(
        f'<iframe srcdoc="{escape(page)}" style="width:{width}px;height:900px;border:0"></iframe>' for width in WIDTHS
    )
    (directory / "frames.html").write_text(FRAMES.replace("FRAMES", frames), encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", "--v=0", f"--user-data-dir={directory / scheme}", "--window-size=1400,1000",
            f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}", "--dump-dom",
            f"file://{directory / 'frames.html'}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert said is not None
    found: dict[str, Any] = json.loads(unescape(said[1]))
    return found, done.stderr


def luminance(colour: str) -> float:
    """Of ``rgb(r, g, b)``, by WCAG's formula."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "reports").glob("experiment*.html"))


MADE: dict[str, Callable[[], str]] = {
    "whole": made_page,
    "slow-kafka": lambda: report.render(demo(4.0)),
    "failing": lambda: report.render(failing()),
    "story": lambda: report.render(over_time()),
}
PAGES: list[tuple[str, Callable[[], str]]] = [
    *MADE.items(),
    *((path.stem, partial(path.read_text, encoding="utf-8")) for path in COMMITTED),
]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: chromium)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", [make for _, make in PAGES], ids=[name for name, _ in PAGES])
def test_the_report_fits_phone_and_desk_in_both_schemes_and_says_nothing_on_the_console(
    page: Callable[[], str], scheme: str, tmp_path: Path
) -> None:
    shown = page()
    found, log = looked_at(shown, scheme, tmp_path)
    assert "CONSOLE" not in log, log
    assert found.keys() == {str(width) for width in WIDTHS}
    for width, seen in found.items():
        assert seen["scroll"] <= int(width), seen
        assert seen["outside"] == []
        assert seen["captions"] <= int(width), "a table that scrolls has a caption that does not"
        assert seen["cut"] == [], "no word in a picture is cut off"
        assert seen["widest"] <= int(width)
        assert seen["smallest"] >= 7, "text in pictures stays readable"
        # Each picture is drawn for wide screens and for narrow ones, and shown once.
        assert seen["drawn"] == shown.count("<svg") - shown.count('class="for-narrow"')
        light, dark = sorted((luminance(seen["paper"]), luminance(seen["ink"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 12
        assert (luminance(seen["paper"]) > 0.5) == (scheme == "light")
