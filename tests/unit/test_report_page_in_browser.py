"""The report in a real browser: it loads with the network gone, fits a phone, and every picture is there."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_report import EXPERIMENTS, write_project

from cl_core.report.page import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LUMINANCE = """element => {
    const [r, g, b] = getComputedStyle(element).backgroundColor.match(/\\d+/g).map(Number);
    return (r + g + b) / 3;
}"""


CONTRASTS = """() => {
    const linear = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).map(each => linear(each / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = luminance(getComputedStyle(document.body).backgroundColor);
    const inks = [...document.querySelectorAll('svg.plot text')].map(text => getComputedStyle(text).fill);
    const texts = document.querySelectorAll('p, .note, .legend, .state, h2, a');
    inks.push(...[...texts].map(each => getComputedStyle(each).color));
    return inks.map(ink => luminance(ink)).map(ink => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifacts = write_project(tmp_path_factory.mktemp("browser") / "artifacts")
    return write_report(artifacts, artifacts / "report" / "index.html", experiments=EXPERIMENTS, title="Digits")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop-light", "phone-dark"])
def page(request: pytest.FixtureRequest, browser: sync_api.Browser, report: Path) -> Iterator[sync_api.Page]:
    """The page, offline, all details open; complaints of the browser are errors."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("requestfailed", lambda failed: complaints.append(f"failed: {failed.url}"))
    page.on("request", lambda asked: complaints.extend([asked.url] * (not asked.url.startswith(("file:", "data:")))))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    yield page
    assert complaints == []
    context.close()


def test_page_loads_offline_with_every_picture_and_table_visible(page: sync_api.Page) -> None:
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) > 200
    assert min(widths) > 0
    plots = page.locator("svg.plot")
    assert plots.count() > 15
    assert all(box["width"] > 200 and box["height"] > 100 for box in map(sync_api.Locator.bounding_box, plots.all()))
    tables = page.locator("table").all()
    assert len(tables) > 8
    assert all(table.is_visible() for table in tables)


def test_nothing_is_wider_than_the_screen_but_what_scrolls_by_itself(page: sync_api.Page) -> None:
    wide = page.evaluate("""() => [...document.body.querySelectorAll('*')]
        .filter(element => !element.closest('.scroll, nav, svg, pre, .skip, .mark'))
        .filter(element => element.getBoundingClientRect().right > innerWidth + 0.5)
        .map(element => element.outerHTML.slice(0, 120))""")
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_colours_follow_the_system_and_text_in_figures_stands_out(page: sync_api.Page) -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    paper = page.eval_on_selector("body", LUMINANCE)
    assert (paper < 60) if dark else (paper > 240)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert min(contrasts) >= 4.5, "WCAG AA of text and labels against the page"


def test_headings_go_down_one_level_at_a_time_and_every_section_is_in_the_navigation(page: sync_api.Page) -> None:
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(after - before for before, after in itertools.pairwise(levels)) == 1
    sections = page.eval_on_selector_all("main section", "all => all.map(each => '#' + each.id)")
    links = page.eval_on_selector_all("nav a", "all => all.map(each => each.getAttribute('href'))")
    assert links == sections


def test_text_of_users_runs_no_script(page: sync_api.Page) -> None:
    assert page.locator("script").count() == 0
    assert page.get_by_text("<script>alert('class')</script>").count() > 0
