"""The page in a real browser: a newcomer clicks a history together, looks at what changes, and asks why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt install chromium)"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=alert(1)> Title 3"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """``visit(url, size)``: a page; what its console complains of fails the test."""
    told: list[str] = []
    opened: list[Any] = []

    def open_page(url: str, size: dict[str, int] = WIDE) -> Any:
        page = browser.new_context(viewport=size).new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda one: told.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(url)
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert not told


def titles(page: Any, column: int = 0) -> list[str]:
    return page.locator("#lists ol").nth(column).locator("li .item > .title").all_text_contents()


def settled(page: Any, before: list[str]) -> list[str]:
    """The titles once they are others than ``before``."""
    page.wait_for_function("before => [...document.querySelectorAll('#lists li .item > .title')].map(one => "
                           "one.textContent).join() !== before", arg=",".join(before))  # fmt: skip
    return titles(page)


def add(page: Any, text: str, title: str) -> None:
    page.fill("#search", text)
    page.get_by_role("option", name=title, exact=True).click()


@pytest.fixture
def hostile(bundle: Path) -> Path:
    """The bundle with markup in the title of an item."""
    import polars as pl

    from recsys.serve.bundle import Bundle, export

    loaded = Bundle.load(bundle)
    text = dict(loaded.item_text)
    text["title"] = np.where(text["title"] == "Title 3", HOSTILE, text["title"])
    export(loaded.model, bundle, item_text=text)
    assert HOSTILE in pl.read_parquet(bundle / "items.parquet")["title"].to_list()
    return bundle


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
def test_a_history_of_three_gives_ten_titles_that_change_without_one(serving, hostile: Path, visit, size) -> None:
    server = serving({"toy": hostile})
    page = visit(f"http://127.0.0.1:{server.port}/", size)
    page.wait_for_selector("#lists li")
    before = titles(page)
    assert len(before) == 10 and "fallback" in page.inner_text("#lists")
    for number in (1, 2, 17):
        add(page, f"title {number}", f"Title {number}")
        page.wait_for_function("count => document.querySelectorAll('#history li').length === count", arg=len(
            page.locator("#history li").all()) or 1)  # fmt: skip
    page.wait_for_function("() => document.querySelectorAll('#history li').length === 3")
    three = settled(page, before)
    assert len(three) == 10 and not {"Title 1", "Title 2", "Title 17"} & set(three)
    page.get_by_role("button", name="remove Title 17").click()
    assert settled(page, three) != three and page.locator("#history li").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.reload()  # the address keeps the history
    page.wait_for_selector("#history li")
    assert page.locator("#history .title").all_text_contents() == ["Title 1", "Title 2"]


def test_why_similar_and_not_this(serving, hostile: Path, visit) -> None:
    server = serving({"toy": hostile})
    page = visit(f"http://127.0.0.1:{server.port}/#h=i1&h=i2")
    page.wait_for_selector("#lists li")
    before = titles(page)
    page.locator("#lists li").first.get_by_role("button", name="why").click()
    page.wait_for_selector(".more .bar")
    assert sorted(page.locator(".more .bar .title").all_text_contents()) == ["Title 1", "Title 2"]
    assert "place" in page.inner_text(".more") and page.locator(".more .track i").first.bounding_box()["width"] > 0
    page.locator("#lists li").first.get_by_role("button", name="similar").click()
    page.wait_for_selector(".more li")
    assert page.locator(".more").count() == 1 and page.locator(".more li").count() == 5
    page.locator("#lists li").first.get_by_role("button", name="not this").click()
    after = settled(page, before)
    assert before[0] not in after and before[0] in page.inner_text("#hidden")
    page.get_by_role("button", name=f"show {before[0]} again").click()
    assert settled(page, after) == before


def test_titles_are_text_and_filters_hold(serving, hostile: Path, visit) -> None:
    server = serving({"toy": hostile})
    page = visit(f"http://127.0.0.1:{server.port}/#h=i3")
    page.wait_for_selector("#lists li")
    assert page.locator("#history .title").inner_text() == HOSTILE and page.locator("img").count() == 0
    before = titles(page)
    page.click("#choices summary")
    page.click("#more")
    page.keyboard.type("1, 12, 13")
    assert set(settled(page, before)) == {"Title 1", "Title 12", "Title 13"}


def test_the_keyboard_alone_will_do(serving, bundle: Path, visit) -> None:
    server = serving({"toy": bundle})
    page = visit(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("#lists li")
    before = titles(page)
    page.focus("#search")
    page.keyboard.type("title 2")
    those = "[...document.querySelectorAll('#found li')].map(one => one.textContent)"
    page.wait_for_function(f"() => {those}.length > 1 && {those}.every(one => one.includes('2'))")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#found [aria-selected=true]").inner_text()
    assert page.locator("#search").get_attribute("aria-activedescendant") == "found-1"
    page.keyboard.press("Enter")
    one = settled(page, before)
    assert page.locator("#history .title").all_text_contents() == [chosen]
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"remove {chosen}"
    page.keyboard.press("Enter")
    assert settled(page, one) == before


def test_two_bundles_stand_side_by_side(serving, bundle: Path, other: Path, visit) -> None:
    server = serving({"toy": bundle, "counted": other})
    page = visit(f"http://127.0.0.1:{server.port}/#h=i1")
    page.wait_for_selector("#lists li")
    page.click("#choices summary")
    page.select_option("#beside", "counted")
    page.wait_for_function("() => document.querySelectorAll('#lists ol').length === 2")
    shared = len(set(titles(page, 0)) & set(titles(page, 1)))
    assert page.inner_text("#agreement").startswith(f"{shared} of 10")
    page.select_option("#bundle", "counted")
    page.wait_for_function("() => document.querySelector('#facts').textContent.startsWith('Markov')")


def test_a_server_with_a_key_is_asked_with_it(serving, bundle: Path, browser) -> None:
    server = serving({"toy": bundle}, key="sesame")
    page = browser.new_context().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.get_by_label("asks for a key").fill("sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector("#lists li", timeout=30_000)
    assert len(titles(page)) == 10
    page.context.close()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_visitor_without_history_is_asked(visit: Any, serving: Any, bundle: Path, size: dict[str, int]) -> None:
    page = visit(f"http://127.0.0.1:{serving({'toy': bundle}).port}/", size)
    before = settled(page, [])
    page.get_by_role("button", name="ask me about some items").click()
    page.wait_for_selector("#asking:not([hidden])")
    first = page.text_content("#question")
    page.keyboard.press("Enter")  # the focus is on "I like it"
    after = settled(page, before)
    assert len(after) == 10
    assert page.locator("#history li").count() == 1
    page.wait_for_function("was => document.querySelector('#question').textContent !== was", arg=first)
    second = page.text_content("#question")
    assert second.removeprefix("Do you like ").removesuffix("?") not in first
    page.get_by_role("button", name="don't know it").click()
    page.wait_for_function("was => document.querySelector('#question').textContent !== was", arg=second)
    third = page.text_content("#question").removeprefix("Do you like ").removesuffix("?")
    page.get_by_role("button", name="not for me").click()
    page.wait_for_selector(f"#hidden button:has-text('{third}')")
    page.get_by_role("button", name="enough").click()
    assert page.locator("#asking").is_hidden()
    assert page.locator("#history li").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
