"""Sample texts lie beside base's word by word, from the closest to the furthest, and are never markup."""

from dataclasses import replace

import pytest
from made_up import made_up, with_only, with_rows

from quant.report.samples import MOST_WORDS, samples
from quant.report.templates import environment

ROWS = with_rows({"two": {"method": "quant", "include": ["mlp"], "bits": 2}, "TWO": {"method": "llama_cpp", "type": "Q2_K"}})


def chapter(run):
    return environment().get_template("chapters/samples.md.jinja").render(
        samples=samples(run), prompt=run.base.speed["generation"])


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ") and "words as base" not in line]
    return [[cell.strip() for cell in line[1:-1].split(" |")] for line in lines]


def untimed(run, *names):
    """The run with variants that have no timings, and no text."""
    return replace(run, results=tuple(replace(r, speed={}) if r.name in names else r for r in run.results))


def test_texts_are_aligned_and_sorted():
    run = made_up(nf4={"text": "the same words and more"}, int4={"text": "the other words"}, fp4={"text": "the same"},
                  whole={"text": "something else"}, bnb_nf4={"text": "the  other\nwords"})
    text = chapter(run)
    assert rows(text) == [
        ["bf16, selective, gguf-f16, gguf-q4_0", "all 3", "", ""],
        ["nf4", "3", "(the end)", "… and more"],
        ["fp4", "2", "words", "(the end)"],
        ["int4, bnb-nf4", "1", "same", "… other words"],
        ["whole", "0", "the", "… something else"],
    ]
    assert "Of 9 other variants, 4 write the same 3 words to the end. `whole` leaves base's text first, after 0 words." in text
    assert text.count("the same words") == 1 and "> the same words\n" in text, "base's text stands once, above"


def test_a_long_text_is_cut():
    text = chapter(made_up(nf4={"text": " ".join(f"w{i}" for i in range(MOST_WORDS + 1))}))
    (row,) = [row for row in rows(text) if row[0] == "nf4"]
    assert row[3].endswith(f"w{MOST_WORDS - 1} …")


def test_the_fewest_bits_are_told_apart():
    run = made_up(ROWS, two={"text": "a a a a a b"}, TWO={"text": "the same word again"}, int4={"text": "a a a a a b"})
    text = chapter(run)
    assert ("With the fewest bits, 2 (`TWO` and `two`), the text follows base's for 0 to 2 words and has 2 to 4 distinct words; "
            "base's has 3.") in text
    assert "`two` and `int4` leave base's text first, after 0 words." in text.replace("`int4` and `two`", "`two` and `int4`")
    assert "fewest bits, 2 (`two` and `TWO`), the text is base's to the end." in chapter(made_up(ROWS, int4={"text": "x"}))
    assert "fewest bits" not in chapter(made_up(with_only("float"), bf16={"text": "x"}))


def test_a_variant_that_was_not_timed_has_no_text():
    run = untimed(made_up(ROWS, nf4={"text": "the other"}), "two", "TWO")
    text = chapter(run)
    assert "because they were not timed: `two` and `TWO`." in text and "Of 9 other variants" in text
    assert not [row for row in rows(text) if "two" in row[0]] and "fewest bits, 4 (" in text


@pytest.mark.parametrize(("run", "sentence"), [
    (made_up(), "All 9 other variants write the same text to the end."),
    (made_up(with_only("bitsandbytes")), "The other variant writes the same text to the end."),
    (untimed(made_up(with_only("float")), "bf16"), "not timed: `bf16`."),
])  # fmt: skip
def test_runs_without_a_difference_have_no_table(run, sentence):
    text = chapter(run)
    assert sentence in text and rows(text) == [] and " 0 other" not in text


def test_the_words_of_a_model_are_never_markup():
    text = chapter(made_up(nf4={"text": "the same <b>words</b> | and\n# `more`"}))
    assert "| nf4 | 2 | words | … \\<b\\>words\\<\\/b\\> \\| and \\# \\`more\\` |" in text


def test_a_prompt_that_may_not_be_passed_on_is_counted():
    run = made_up()
    for result in run.results:
        result.speed["generation"]["prompt"] = None
    assert "continued the first 128 tokens of the text" in chapter(run)
