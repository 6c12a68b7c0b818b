"""The page in a real browser: nothing complains, nothing is wider than the window."""

import pytest
import sample_reports as reports
from browser import Browser, find

from jcompress.evidence import draw_page
from jcompress.evidence.style import DARK, LIGHT

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(find() is None, reason="there is no Chromium"),
]

# What sticks out of the window, but for tables, which scroll by themselves.
OUTSIDE = """
[...document.querySelectorAll("body *")].filter(one => {
  if (one.closest(".scroll, pre")) return false;
  const box = one.getBoundingClientRect();
  return box.width && (box.left < -1 || box.right > innerWidth + 1);
}).map(one => one.outerHTML.slice(0, 120))
"""
# Texts of one drawing that lie on top of each other.
OVERLAPPING = """
[...document.querySelectorAll(".plot > svg")].flatMap(chart => {
  const texts = [...chart.querySelectorAll("text:not(.halo)")].map(
    one => [one.textContent, one.getBoundingClientRect()]);
  return texts.flatMap(([a, p], n) => texts.slice(n + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3
  ).map(([b, q]) => a + " / " + b));
})
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for make in (reports.whole, reports.of_run, reports.large):
        made[make.__name__] = folder / f"{make.__name__}.html"
        made[make.__name__].write_text(draw_page(make()), encoding="utf-8")
    return made


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1600])
@pytest.mark.parametrize("name", ["whole", "of_run", "large"])
def test_the_page_fits_and_is_quiet(browser, pages, name, width, dark):
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[name], width=width, dark=dark)
    for unfolded in (False, True):
        browser.evaluate(
            "document.querySelectorAll('details').forEach(one => one.open = "
            f"{str(unfolded).lower()})"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(OVERLAPPING) == []
    colours = DARK if dark else LIGHT
    shown = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    page = colours["page"]
    assert (
        shown == f"rgb({', '.join(str(int(page[n : n + 2], 16)) for n in (1, 3, 5))})"
    )
    if name != "large":
        small = "[...document.querySelectorAll('text')].filter(one => "
        small += "parseFloat(getComputedStyle(one).fontSize) < 10.9).length"
        assert browser.evaluate(small) == 0
    assert browser.complaints == []
    assert browser.requests == [pages[name].resolve().as_uri()]


def test_a_complaint_would_be_heard(browser, tmp_path):
    """The page's own policy refuses what would ask for something, and says so."""
    page = draw_page(reports.whole())
    bad = tmp_path / "bad.html"
    injected = "<img src='http://127.0.0.1:9/x.png'><script>1</script></main>"
    bad.write_text(page.replace("</main>", injected), encoding="utf-8")
    browser.complaints.clear()
    browser.open(bad, width=390, dark=False)
    refused = [said for said in browser.complaints if "Content Security Policy" in said]
    assert len(refused) >= 2
    assert any(url.startswith("http") for url in browser.requests)
