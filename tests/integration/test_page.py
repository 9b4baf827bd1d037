"""The page of a report in a real browser: it renders, it filters, its links work, it complains of nothing.

The browser is one that is installed, or Playwright's own (``playwright install chromium``); without any, it is skipped.
"""

import shutil

import pytest

from tests.fabricated_runs import write_run, write_sweep
from tskd.report import runs
from tskd.report.write import write

playwright = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as engine:
        try:
            opened = engine.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"No browser can be started: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two studies, and in one of them a text that would be a script if it were taken for one."""
    root = tmp_path_factory.mktemp("runs")
    write_sweep(root, thresholds=(0.5, 4), seeds=(0,), targets=("atlas_neox",))
    hostile = write_run(root / "hostile", questions=30, prompts=10) / "iteration_0" / "kept.jsonl"
    hostile.write_text(
        hostile.read_text().replace("What is", "</script><script>document.title = 'taken'</script>What is")
    )
    write(runs.collect([root]), root / "report")
    return root / "report" / "report.html"


@pytest.fixture
def page(browser, report):
    complaints, asked_for = [], []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert [] == complaints
    assert [] == [url for url in asked_for if not url.startswith((report.as_uri(), "data:"))]
    page.close()


def counts(page, section):
    """What the section says it shows, and the rows that it has."""
    part = page.locator(f"[data-browse={section}]")
    return part.locator("output").inner_text(), part.locator("tbody tr").count()


def test_it_renders_its_tables_and_every_figure(page):
    assert ["atlas (1)", "atlas (2)"] == sorted(page.locator("h2").all_inner_texts())
    assert 7 == page.locator("table:not([data-browse] table)").count()
    sizes = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert 9 == len(sizes)
    assert all(sizes)


def test_it_filters_by_gap_side_and_words(page):
    section = next(name for name in ("examples-0", "examples-1") if counts(page, name)[0].startswith("180"))
    part = page.locator(f"[data-browse={section}]")
    assert ("180 of 180", 180) == counts(page, section)
    part.locator("[name=least]").fill("4")
    (said, shown) = counts(page, section)
    gaps = [float(text) for text in part.locator("tbody tr td:first-child").all_inner_texts()]
    assert (f"{shown} of 180", True) == (said, 0 < shown < 180)
    assert min(gaps) >= 4
    part.locator("[name=most]").fill("10")
    assert counts(page, section)[1] < shown
    part.locator("[name=side]").select_option("dropped")
    assert 0 == counts(page, section)[1]
    part.locator("[name=least]").fill("")
    part.locator("[name=search]").fill("HARBOUR")
    texts = part.locator("tbody tr td:nth-child(6)").all_inner_texts()
    assert texts
    assert all("harbour" in text for text in texts)


def test_its_links_lead_to_what_they_name(page):
    links = page.locator("nav a")
    assert 6 == links.count()
    for link in links.all():
        link.click()
        target = page.locator(f"[id='{link.get_attribute('href')[1:]}']")
        assert target.evaluate("part => Math.abs(part.getBoundingClientRect().top) < innerHeight")
        assert target.inner_text().lower() == link.inner_text().lower()


def test_a_text_in_it_stays_a_text(page):
    assert "TuneShift-KD report" == page.title()
    assert page.get_by_text("</script><script>").count() > 0


def test_the_page_of_a_report_can_send_nothing_anywhere(report):
    assert "default-src 'none'" in report.read_text()
