"""Names, texts and parameters that hold HTML, script, Markdown, Typst or formulas show as text in every form of the report."""

from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, Page
from made_up import CORPUS, MODEL, PARAMS, made_up

from quant.hub.license import LONGEST, License
from quant.report.document import render_markdown, write_report
from quant.report.figures import draw_all
from quant.report.sweep import _cell
from quant.report.wording import literal, unmarked

HOSTILE = ("<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "`<img src=x onerror=window.pwned=1>`{=html}",
           '`#panic("typst")`{=typst}', '#panic("typst")', "[a](javascript:window.pwned=1)",
           "x\n```\n<script>window.pwned=1</script>",
           "$\\frac{1}$", "a | b | c", "*bold* _it_ @ref <label> \\", '"onmouseover="window.pwned=1')  # fmt: skip
EVERYTHING = " ".join(HOSTILE)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The report of a run in which everything that comes from outside is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    run = made_up(params={**PARAMS, "model": {"source": EVERYTHING, "revision": HOSTILE[6]}, EVERYTHING: {"```": EVERYTHING}},
                  gguf_q4_0={"text": EVERYTHING}, whole={"text": "the same " + HOSTILE[1]})
    for result in run.results:
        result.speed["generation"] |= {"base_text": EVERYTHING, "prompt": EVERYTHING}
        result.quality["protocol"]["split"] = EVERYTHING
    run.family[0]["source"] = EVERYTHING
    corpus = {**CORPUS, "source": EVERYTHING}
    model = {**MODEL, "source": EVERYTHING, "files": {text: {"sha256": "ab" * 32} for text in HOSTILE}}
    (folder / "figures").mkdir()
    draw_all(run, folder / "figures")
    write_report(run, folder, corpus, model)
    return folder, run, corpus, model


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_no_element_of_the_data(hostile):
    page = Elements((hostile[0] / "report.html").read_text())
    assert [tag for tag, _ in page.found].count("script") == 1, "the template's own"
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    addresses = [value for _, attributes in page.found for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(one.startswith(("data:image/", "#", "https://")) for one in addresses)
    for text in HOSTILE[:6]:
        assert "".join(text.split()) in "".join(page.text.split()), f"{text} is not shown as it is"


def test_the_page_has_a_policy_that_runs_its_own_script_only(hostile):
    page = Elements((hostile[0] / "report.html").read_text())
    (policy,) = [attributes["content"] for tag, attributes in page.found if attributes.get("http-equiv")]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "SCRIPT-HASH" not in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)")
def test_a_browser_runs_nothing_of_the_data(hostile, tmp_path):
    with Page(hostile[0] / "report.html", tmp_path / "profile") as page:
        page.value("document.querySelectorAll('*').forEach(one => one.dispatchEvent(new MouseEvent('mouseover')))")
        assert page.value("typeof window.pwned") == "undefined" and page.errors == []
        assert page.value("document.querySelectorAll('th button').length") > 20, "the page's own script runs"
        assert [url for url in page.requests if not url.startswith("data:")] == [(hostile[0] / "report.html").as_uri()]
    with Page(hostile[0] / "report.html", tmp_path / "another") as page:  # and even if an element came in
        page.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.pwned=1>')")
        page.value("new Promise(done => setTimeout(done, 200))")
        assert page.value("typeof window.pwned") == "undefined"


def test_the_pdf_is_the_same_bytes_at_every_run(hostile):
    folder, *rest = hostile
    first = (folder / "report.pdf").read_bytes()
    write_report(rest[0], folder, *rest[1:])
    assert (folder / "report.pdf").read_bytes() == first


def test_parameters_stay_within_their_frame(hostile):
    text = render_markdown(*hostile[1:])
    frame = text[text.rindex("## Provenance"):]
    fence = next(line for line in frame.splitlines() if line.endswith("yaml") and line.startswith("```"))[:-4]
    assert len(fence) > 3 and frame.count(f"\n{fence}\n") == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_is_code_or_escaped(text):
    shown = literal(text)
    assert "\n" not in shown and (shown == f"`{text}`" or "<" not in shown.replace("\\<", ""))


def test_a_cell_is_no_formula():
    assert unmarked("their-terms (https://a.b/c.md).") == "their-terms (https://a.b/c.md)." and "\\<" in unmarked("<b>")
    assert [_cell(value) for value in ("=1+1", "@x", "+a", 4, -4.5, "nf4")] == ["'=1+1", "'@x", "'+a", 4, -4.5, "nf4"]


@pytest.mark.parametrize("front", [
    "license: " + "[" * 3000, "license: 2024-99-99", "license: " + "x" * 100_000, "license: [" + "x, " * 50 + "y]",
    "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n"
                                                    for a, b in zip("abcdefg", "bcdefgh", strict=True)) + "license: *h",
    "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join(9 * [f'*{a}'])}]}}\n"
                               for a, b in zip("abcdefg", "bcdefgh", strict=True)) + "license: mit",
    "license: !!python/object/apply:os.system ['touch ran']", "license: \"a\\u001b[2Jb\"", "- a", "\0", "license: {a: b}",
])  # fmt: skip
def test_the_front_matter_of_a_card_is_short_text_or_nothing(tmp_path, front):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    found = License.from_card(tmp_path / "README.md")
    for value in (found.id, found.name, found.link):
        assert value is None or (isinstance(value, str) and len(value) <= LONGEST * 9 and value.isprintable())
