"""The report in a real browser: Debian's chromium (`apt-get install chromium`), driven by playwright, read by axe-core.

Without a chromium on the PATH these tests are skipped, and say so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from s2r_ray.ranking import Better
from s2r_ray.report.page import page
from tests.hostile_text import MARKUP, UNSEEN
from tests.made_runs import made_run, pool_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")

PAPER = {"width": 690, "height": 1000}
"""The text area of A4 in CSS pixels, portrait, with the page's own margins."""
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> dict[str, Path]:
    """A page of many numbers, and one of a hostile pool with its texts."""
    folder = tmp_path_factory.mktemp("reports")
    texts = [f"{number} {text}{mark}" for number, text in enumerate(MARKUP) for mark in UNSEEN]
    rows = [
        {"id": text, "q": text, "a": f"<think>{text}\n{'word ' * (9 + n)}\n\n{text}</think>", "source": MARKUP[n % 9]}
        for n, text in enumerate(texts)
    ]
    many: dict[str, Better] = {"rsr": "low", "a_signal_with_a_long_name": "high", "gain": "high", "loss": "low"}
    chosen = 'source != "</p><script>alert(1)</script>" and rsr_rank <= 0.95'
    numbers = made_run(
        folder / "numbers", 2000, 1, levels=1 << 20, longest=9000, noise=0.01, further=many, chosen=chosen
    )
    pages = {
        "numbers": page(numbers),
        "hostile": page(pool_run(folder / "hostile", json.loads(json.dumps(rows)), tokenizer_dir)),
    }
    for name, source in pages.items():
        (folder / f"{name}.html").write_text(source, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


class Opened:
    """A page and all that it said, asked for or threw."""

    def __init__(self, browser: Any, file: Path, **screen: Any) -> None:
        self.heard: list[str] = []
        self.page = browser.new_page(**screen)
        self.page.on("console", lambda message: self.heard.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.heard.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.heard.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._asked(request.url, file))
        self.page.goto(file.as_uri())

    def _asked(self, url: str, file: Path) -> None:
        if url != file.as_uri() and not url.startswith("data:"):
            self.heard.append(f"request: {url}")

    def violations(self) -> list[str]:
        """What axe-core finds, with the first element of each kind."""
        script = resources.files("axe_playwright_python") / "axe.min.js"
        self.page.evaluate(script.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run()")
        return [f"{item['id']}: {item['help']}: {item['nodes'][0]['html'][:200]}" for item in found["violations"]]

    def too_wide(self) -> list[str]:
        """Elements that reach beyond the right edge, but for what lies in a box that scrolls."""
        found: list[str] = self.page.evaluate(
            """() => [...document.body.querySelectorAll("*")]
                .filter(e => !e.closest("svg") && !e.closest(".scroll *"))
                .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
                .map(e => e.outerHTML.slice(0, 200))"""
        )
        return found


@pytest.mark.parametrize("name", ["numbers", "hostile"])
@pytest.mark.parametrize("screen", SCREENS)
def test_on_screens(screen: str, name: str, browser: Any, reports: dict[str, Path]) -> None:
    """Catches: errors in the console, anything loaded or run, too little contrast (dark drawings on dark paper, too),
    headings out of order, tables and regions without names, and a page that must be pushed sideways."""
    opened = Opened(browser, reports[name], **SCREENS[screen])
    assert opened.page.title().startswith("Selection 2")
    assert opened.violations() == []
    assert opened.too_wide() == []
    assert opened.page.evaluate("document.scripts.length") == 0
    assert opened.heard == []
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_follow_the_scheme(scheme: str, browser: Any, reports: dict[str, Path]) -> None:
    """Catches: drawings that keep the colours of one scheme (axe does not look into them), or have none at all."""
    opened = Opened(browser, reports["numbers"], color_scheme=scheme)
    fills = opened.page.evaluate(
        """() => [...document.querySelectorAll("figure svg text")].map(e => getComputedStyle(e).fill)"""
    )
    assert len(fills) > 50
    shades = [sum(map(int, fill.removeprefix("rgb(").removesuffix(")").split(","))) / 3 for fill in fills]
    assert max(shades) < 60 if scheme == "light" else min(shades) > 200
    lines = opened.page.evaluate(
        """() => [...document.querySelectorAll("figure svg path")].map(e => getComputedStyle(e).stroke)"""
    )
    assert len(set(lines)) > 4, "ink, grid and each budget"
    opened.page.close()


def test_with_the_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    """Catches: contents, tables that scroll or numbers of a figure that only a mouse can reach or open."""
    opened = Opened(browser, reports["numbers"], **SCREENS["narrow"])
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.getAttribute('href')") == "#run"
    reached = set()
    for _ in range(80):
        opened.page.keyboard.press("Tab")
        tag = opened.page.evaluate("document.activeElement.tagName")
        if tag == "SUMMARY" and "SUMMARY" not in reached:
            opened.page.keyboard.press("Enter")
            assert opened.page.evaluate("document.activeElement.parentElement.open")
        reached.add(tag)
    assert {"A", "DIV", "SUMMARY"} <= reached
    opened.page.close()


def test_on_paper(browser: Any, reports: dict[str, Path], tmp_path: Path) -> None:
    """Catches: contents and closed boxes on paper, dark pages, and what the edge of the paper cuts off."""
    opened = Opened(browser, reports["numbers"], viewport=PAPER, color_scheme="dark")
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("nav").is_visible()
    assert not opened.page.locator("details").first.is_visible()
    assert opened.too_wide() == []
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.violations() == []
    opened.page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    opened.page.close()


def test_hostile_text_is_seen(browser: Any, reports: dict[str, Path]) -> None:
    """Catches: text that becomes markup, or hides, or turns what is written beside it."""
    opened = Opened(browser, reports["hostile"], **SCREENS["light"])
    text = opened.page.evaluate("document.body.innerText")
    assert any(markup in text for markup in MARKUP[:4])
    assert "\\u202e" in text or "\\u2066" in text
    assert not [mark for mark in UNSEEN if mark in text]
    assert opened.page.locator("main section").count() == 10
    assert opened.page.locator("footer").is_visible()
    opened.page.close()
