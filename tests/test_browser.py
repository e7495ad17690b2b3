"""The report in a real browser: complete, without errors or network requests; tables sort; it fits a phone."""

import pytest
from browser import CHROMIUM, Page

from quant.report.figures import figures_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)")


@pytest.fixture
def report(made_up_report):
    folder, run = made_up_report
    return folder / "report.html", run


@pytest.fixture(params=[(1280, False), (390, False), (390, True)], ids=["desktop", "phone", "phone-dark"])
def page(report, request, tmp_path):
    width, dark = request.param
    with Page(report[0], tmp_path / "profile", width=width, dark=dark) as opened:
        yield opened


def test_the_page_is_whole(page, report):
    shown = page.value("[...document.images].filter(image => image.complete && image.naturalWidth > 100).length")
    assert shown == len(figures_of(report[1])) == page.value("document.images.length")
    assert page.value("document.querySelectorAll('figure figcaption').length") == shown
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report[0].resolve().as_uri()]
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), "the page scrolls sideways"
    links = page.value("[...document.querySelectorAll('a[href^=\"#\"]')].every(a => document.getElementById(a.hash.slice(1)))")
    assert links, "a link within the page leads nowhere"


def test_dark_mode_is_dark(report, tmp_path):
    colours = {}
    for dark in (False, True):
        with Page(report[0], tmp_path / str(dark), dark=dark) as page:
            colours[dark] = page.value("getComputedStyle(document.body).backgroundColor")
    assert colours[False] == "rgb(255, 255, 255)" and colours[True] == "rgb(22, 24, 28)"


def test_tables_sort_by_number_and_by_name_both_ways(report, tmp_path):
    column = """(name) => {
      const table = [...document.querySelectorAll('table')].find(table => table.tHead.textContent.includes('95 % interval'));
      const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent.startsWith(name));
      head.querySelector('button').click();
      return [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent);
    }"""
    with Page(report[0], tmp_path / "profile") as page:
        up = page.value(f"({column})('weights MiB')")
        down = page.value(f"({column})('weights MiB')")
        assert up == sorted(up, key=float) and down == sorted(down, key=float, reverse=True) and up[0] == "9.00"
        assert page.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
        names = page.value(f"({column})('variant')")
        assert names == sorted(names) and page.value("document.querySelectorAll('th[aria-sort]').length") == 1
        intervals = page.value(f"({column})('95 % interval')")
        assert intervals[-1] == "", "base has none, and comes last"
        starts = [float(text.split()[0]) for text in intervals[:-1]]
        assert starts == sorted(starts)


def test_a_tap_makes_a_figure_large_on_a_phone(report, tmp_path):
    width = "document.querySelector('figure img').getBoundingClientRect().width"
    with Page(report[0], tmp_path / "profile", width=390) as page:
        assert page.value(width) < 390
        page.value("document.querySelector('figure img').click()")
        assert page.value(width) > 700 and page.value("document.documentElement.scrollWidth") == 390
        page.value("document.querySelector('figure img').click()")
        assert page.value(width) < 390
