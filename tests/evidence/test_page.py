"""The page of a report: what is in it, and what is refused."""

import copy
import html.parser
import json
import re
import tomllib

import numpy as np
import pytest
import sample_reports as reports

from jcompress.evidence import ReportError, draw_page
from jcompress.evidence.bars import Pair, bars, ranked
from jcompress.evidence.front import Point, pareto
from jcompress.evidence.heat import LEVELS, level_of
from jcompress.evidence.markup import Markup, escaped, tag
from jcompress.evidence.reading import Found
from jcompress.evidence.recipe import recipe_text
from jcompress.evidence.scales import Scale, bytes_text, seconds_text, short
from jcompress.evidence.strips import Strip
from jcompress.evidence.style import DARK, HIGH, LIGHT, style_sheet

pytestmark = pytest.mark.once

SECTIONS = {
    "Side by side": "comparison",
    "Training and recovery": "losses",
    "Bytes by leaf": "leaves",
    "Time by leaf": "leaves",
    "Time of a call": "comparison",
    "Which leaf hurts": "sensitivity",
    "Cost and quality": "front",
    "How it was made": "steps",
}


class Reader(html.parser.HTMLParser):
    """Elements, their attributes, and the text of a document; checks the nesting."""

    def __init__(self, document):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def headings(document):
    return re.findall(r"<h2>(.*?)</h2>", document)


@pytest.mark.parametrize(
    "make", [reports.whole, reports.of_compress, reports.of_run, reports.large]
)
def test_the_document_asks_for_nothing_and_shows_names_as_they_are(make):
    page = draw_page(make())
    assert page.encode().startswith(b"<!doctype html>\n<html lang=")
    reader = Reader(page)
    kinds = {kind for kind, _ in reader.found}
    assert not kinds & {"script", "img", "iframe", "object", "embed", "a", "form"}
    ids = [attrs["id"] for _, attrs in reader.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for kind, attrs in reader.found:
        assert not {"src", "srcdoc", "action", "style"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("href", "data:,") == "data:,"
        if attrs.get("role") == "img":
            assert set(attrs["aria-labelledby"].split()) <= set(ids)
        numbers = [attrs.get(name, "0") for name in ("width", "height", "r", "x1")]
        assert kind == "svg" or not any(n.startswith("-") for n in numbers), attrs
    for forbidden in ("url(", "@import", "http:", "https:", "nan", "inf%"):
        assert forbidden not in page.lower().replace("difference", "")
    if make is reports.whole:
        text = "".join(reader.text)
        shown = re.sub(
            "[\x00\ud800\u202e]", "\N{REPLACEMENT CHARACTER}", reports.STRANGE
        )
        assert text.count(shown) > 5
        assert reports.LONG in text


def test_a_section_is_there_if_the_report_has_its_data():
    assert headings(draw_page(reports.whole())) == list(SECTIONS)
    for key in ("losses", "sensitivity", "front"):
        for empty in (None, "gone"):
            report = reports.whole()
            report[key] = None
            if empty == "gone":
                del report[key]
            left = [name for name, of in SECTIONS.items() if of != key]
            assert headings(draw_page(report)) == left
    report = reports.of_compress(leaves=[])
    assert "Bytes by leaf" not in headings(draw_page(report))
    assert "Time by leaf" not in headings(draw_page(reports.of_run()))


def test_the_headline_says_in_words_what_came_of_it_with_its_labels():
    text = "".join(Reader(draw_page(reports.of_compress())).text)
    assert "accuracy 0.98 became 0.96 (worse); 3.98x fewer bytes (smaller)" in text
    assert "of the time at batch 1 (faster)" in text
    assert "Not published" not in text
    assert "Outputs on the example differ by 1.1 %." in text
    assert "2 of 3 take longer than before" in text
    report = reports.of_compress(accepted=False, max_drop=0.01)
    text = "".join(Reader(draw_page(report)).text)
    assert "Not published: accuracy became worse by 0.02, more than the 0.01" in text
    report = reports.of_compress(accepted=False, metric=None)
    assert "Not published: what was asked for was not reached." in draw_page(report)
    report = reports.of_compress()
    (line,) = [x for x in report["comparison"]["lines"] if x["name"] == "bytes stored"]
    line |= {"change": "same", "label": "simulated", "evidence": "simulated"}
    text = "".join(Reader(draw_page(report)).text)
    assert "the same bytes as dense (simulated)" in text


def test_a_report_of_an_earlier_version_is_drawn_without_samples_and_texts():
    report = reports.of_run()
    for side in ("dense", "compressed"):
        del report[side]["latency_ms_samples"]
    for line in report["lines"]:
        for key in ("baseline_text", "value_text", "evidence"):
            del line[key]
    page = draw_page(report)
    assert headings(page)[3] == "Time of a call"
    assert "sample" not in re.sub("<style>.*</style>|samples", "", page, flags=re.S)
    assert "400k" in page
    assert ">smaller<" in page


def nodes(value, at=()):
    yield at
    parts = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        parts = enumerate(value[:2])
    for key, part in parts:
        yield from nodes(part, (*at, key))


def refusal_of(report):
    """The message; empty if it is drawn."""
    try:
        draw_page(report).encode()
    except ReportError as error:
        return str(error)
    return ""


WRONG = [None, "x", 3, -1, 1e300, 10**400, 5e-324, float("nan"), [], {}, True, "gone"]


@pytest.mark.parametrize("wrong", WRONG, ids=[str(x)[:6] for x in WRONG])
@pytest.mark.parametrize("make", [reports.whole, reports.of_run])
def test_any_damage_is_drawn_or_refused_in_one_line(make, wrong):
    report = make()
    refused = 0
    for *path, last in filter(None, nodes(report)):
        damaged = copy.deepcopy(report)
        place = damaged
        for key in path:
            place = place[key]
        place[last] = wrong
        if wrong == "gone":
            del place[last]
        refusal = refusal_of(damaged)
        refused += bool(refusal)
        assert "\n" not in refusal
    assert refused or wrong == 5e-324


def test_damage_is_named():
    report = reports.whole()
    report["leaves"][1]["bytes_before"] = "many"
    with pytest.raises(ReportError, match=r"leaves\[1\].bytes_before is str, not a nu"):
        draw_page(report)
    report = reports.whole()
    report["sensitivity"]["leaves"][reports.LONG].pop()
    with pytest.raises(ReportError, match=r"has 2 numbers for 3 candidates"):
        draw_page(report)
    report = reports.whole()
    del report["front"]["points"][0]["cost"]
    with pytest.raises(ReportError, match=r"it has no 'front.points\[0\].cost'"):
        draw_page(report)
    report["front"]["cost"] = "euros"
    with pytest.raises(ReportError, match="'euros', not one of bytes, multiplications"):
        draw_page(report)


def test_bars_are_sorted_to_scale_and_the_rest_is_summed():
    pairs = [Pair(f"leaf {n}", 1000.0 + n, 10.0) for n in range(50)]
    rows = ranked(pairs, 20)
    assert [row.name for row in rows[:2]] == ["leaf 49", "leaf 48"]
    assert len(rows) == 20
    assert rows[-1].name == "the other 31"
    assert rows[-1].before == sum(1000 + n for n in range(31))
    assert rows[-1].after == 310
    tiny = [Pair("large", 10.0**6, 0.0), *(Pair(f"{n}", 1.0, 0.0) for n in range(5))]
    assert [row.name for row in ranked(tiny, 20)] == ["large", "the other 5"]
    drawn = bars("b", [Pair("a", 50.0, 200.0), Pair("c", 100.0, 0.0)], title="t",
                 shown=str)  # fmt: skip
    widths = re.findall(r'<rect x="0" y="\d+" width="([\d.]+)%"', drawn)
    first, second, third, fourth = map(float, widths)
    assert (first, third, fourth) == (second / 4, second / 2, 0)
    nothing = bars("b", [Pair("a", 0.0, 0.0)], title="t", shown=str)
    assert 'width="0.00%"' in nothing


def test_strips_have_the_quartiles_of_numpy():
    samples = np.random.default_rng(1).uniform(1, 2, 31)
    strip = Strip.of("a", list(samples), after=True)
    np.testing.assert_allclose(strip.quartiles, np.quantile(samples, (0.25, 0.5, 0.75)))
    page = draw_page(reports.of_compress())
    assert page.count("; 1 beyond") == 2  # the one call that took long
    assert page.count('class="sample before"') == 2 * 31
    assert page.count('class="sample after"') == 2 * 30


def test_levels_rise_with_the_logarithm():
    assert [level_of(10.0**n, 1e-8, 1.0) for n in range(-8, 1)] == [*range(8), 7]
    assert level_of(0.0, 1e-8, 1.0) == 0
    assert level_of(0.5, 0.5, 0.5) == 0
    assert sum(name.startswith("level") for name in LIGHT) == LEVELS


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_nothing_beats(higher):
    rng = np.random.default_rng(2)
    points = [
        Point(str(n), float(cost), float(metric) if n % 4 else None, 0.5, False)
        for n, (cost, metric) in enumerate(rng.integers(0, 12, (40, 2)))
    ]
    measured = [p for p in points if p.metric is not None]

    def beats(a, b):
        better = a.metric >= b.metric if higher else a.metric <= b.metric
        same = (a.cost, a.metric) == (b.cost, b.metric)
        return better and a.cost <= b.cost and not same

    wanted = {
        (p.cost, p.metric) for p in measured if not any(beats(q, p) for q in measured)
    }
    found = pareto(points, higher)
    assert {(p.cost, p.metric) for p in found} == wanted
    assert [p.cost for p in found] == sorted(p.cost for p in found)


@pytest.mark.parametrize(
    "values",
    [[0.0], [5.0], [-3.0], [1.0, 2.0], [1e-9, 1.0], [7.0, 7000.0], [-1.0, 1e6],
     [0.3, 0.30001], [1e-300, 1e300], [1e9, 1.0001e9], [0.02, 0.9], [3.0, 99.0]],
)  # fmt: skip
@pytest.mark.parametrize("zero", [True, False])
def test_every_value_has_its_place_on_an_axis(values, zero):
    scale = Scale.of(values, zero=zero)
    places = [scale.at(value) for value in values]
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert places == sorted(places)
    assert 2 <= len(scale.ticks) <= 8
    assert all(-1e-9 <= scale.at(tick) <= 1 + 1e-9 for tick in scale.ticks)
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert not (zero and scale.log)


@pytest.mark.parametrize(
    ("shown", "number", "text"),
    [
        (short, 0.0, "0"),
        (short, 1.2e-5, "1.2e-5"),
        (short, 999_999.0, "1M"),
        (short, 12_345.0, "12.3k"),
        (short, 9_999.0, "1e4"),
        (short, None, "\N{EN DASH}"),
        (bytes_text, 0, "0 B"),
        (bytes_text, 999, "999 B"),
        (bytes_text, 999_999, "1 MB"),
        (bytes_text, 16_900, "16.9 kB"),
        (seconds_text, 0.00045, "450 µs"),
        (seconds_text, 0.9999, "1 s"),
        (seconds_text, 0.0123, "12.3 ms"),
    ],
)
def test_numbers_are_told_in_three_digits(shown, number, text):
    assert shown(number) == text


def test_markup_is_escaped_once():
    assert escaped("<b>") == "&lt;b&gt;"
    assert escaped(Markup("<b>")) == "<b>"
    assert tag("p", "a & b", title='"x"', class_="c", y=None) == (
        '<p title="&quot;x&quot;" class="c">a &amp; b</p>'
    )


def luminance(colour):
    parts = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out(colours):
    """WCAG 2.2, 1.4.3: 4.5 for text; 1.4.11: 3 for marks."""
    for page in ("page", "panel"):
        for text in ("text", "quiet"):
            assert contrast(colours[text], colours[page]) >= 4.5
    for name in ("good", "bad", "plain"):
        assert contrast(colours[name], colours[f"{name}-page"]) >= 4.5
    for mark in ("before", "after"):
        assert contrast(colours[mark], colours["page"]) >= 3
    for level in range(LEVELS):
        text = colours["high-text" if level >= HIGH else "low-text"]
        assert contrast(text, colours[f"level{level}"]) >= 4.5, level
    shades = [luminance(colours[f"level{n}"]) for n in range(LEVELS)]
    assert shades == sorted(shades, reverse=colours is LIGHT)


def test_every_colour_has_a_role_in_both_schemes():
    assert set(LIGHT) == set(DARK)
    sheet = style_sheet()
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", sheet)) == set(LIGHT)


def test_the_recipe_is_the_toml_that_says_it():
    for make, key in ((reports.of_compress, "steps"), (reports.of_run, "recipe")):
        report = make()
        text = recipe_text(Found(report))
        wanted = {"step": report[key]} if key == "steps" else report[key]
        assert tomllib.loads(text) == wanted
        assert "\n\n\n" not in text
    forms = {"params/x y": "int4 /64", '"': "2:4"}
    steps = [{"kind": "mix", "forms": forms, "gone": None}, {"kind": "w8"}]
    text = recipe_text(Found({"steps": steps}))
    del steps[0]["gone"]
    assert tomllib.loads(text) == {"step": steps}
    assert recipe_text(Found({})) == ""


def test_json_and_back_is_the_same_page():
    report = reports.of_compress()
    assert draw_page(json.loads(json.dumps(report))) == draw_page(report)
