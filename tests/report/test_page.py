"""The page: escapes what comes from data, asks for nothing outside, and says what is missing."""

import html
import re
from html.parser import HTMLParser
from itertools import pairwise

from ecgbyte_jax.report import words
from ecgbyte_jax.report.page import Example, Page, Table, picture, render
from ecgbyte_jax.report.tokens import draw_compression

EVIL = '<script>alert("x")</script><img src=//evil.example/x onerror=alert(1)>\'"&{{ 7*7 }}'


class Tags(HTMLParser):
    """All tags with their attributes, and ids."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def evil_page() -> Page:
    table = Table(EVIL, (EVIL, EVIL), ((EVIL, EVIL),))
    shown = picture(draw_compression({0: 1.0, 5: 2.0}), EVIL, EVIL, EVIL)
    example = Example(EVIL, EVIL, "best", EVIL, EVIL, EVIL, EVIL, True, ((EVIL, 0.5),), ((EVIL, EVIL),), (shown,), (table,))
    empty = Example("2", "verify", "worst", f"q\ud800 {EVIL}", "", "", "", False)
    return Page(
        EVIL, EVIL, [table], [EVIL], [example, empty], EVIL, [shown], [EVIL], [table], [EVIL], [table], [shown], [EVIL], [table]
    )


def test_what_comes_from_data_is_text():
    text = render(evil_page()).decode()
    tags = Tags(text).found
    assert [tag for tag, _ in tags].count("script") == 1  # ours
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert not any("evil" in str(attributes.get("src")) for _, attributes in tags)
    assert "{{ 7*7 }}" in text and "&lt;script&gt;alert" in text and "49" not in re.sub(r"base64,[^\"]+|sha256-\S+", "", text)


def test_nothing_is_asked_for_outside_the_file():
    tags = Tags(render(evil_page()).decode()).found
    for tag, attributes in tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "'sha256-" in policy


def test_pictures_tell_what_they_show_and_headings_go_down_by_one():
    tags = Tags(render(evil_page()).decode()).found
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 3 and all(image["alt"] and image["width"] and image["height"] for image in images)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    labels = {attributes["for"] for tag, attributes in tags if tag == "label"}
    assert labels == {attributes["id"] for tag, attributes in tags if tag == "select"}
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag in ("main", "header", "nav", "footer"):
        assert sum(found == tag for found, _ in tags) == 1
    assert dict(tags)["html"]["lang"] == "en"


def test_examples_can_be_filtered_by_their_type_and_by_why_they_were_chosen():
    text = render(evil_page()).decode()
    articles = [attributes for tag, attributes in Tags(text).found if tag == "article"]
    assert [(one["data-type"], one["data-why"]) for one in articles] == [(EVIL, "best"), ("verify", "worst")]
    options = [html.unescape(option) for option in re.findall("<option[^>]*>(.*?)</option>", text)]
    assert options == ["all", EVIL, "verify", "all", "best", "worst", "random"]


def test_an_answer_is_marked_as_right_or_wrong():
    tags = Tags(render(evil_page()).decode()).found
    assert [found["class"] for tag, found in tags if tag == "dd" and "class" in found] == ["right", "wrong"]


def test_it_says_that_this_is_no_medical_device():
    assert b"Research software, no medical device." in render(Page("run", "", []))


def test_the_same_page_has_the_same_bytes():
    assert render(evil_page()) == render(evil_page())


RESULTS = {
    "split": "test", "checkpoint_step": 9, "sequences": 1234, "patients": 20, "empty_answers": 3, "seeds": [0, 42],
    "scores": {"model": {"exact_match": 0.5, "bleu": 0.25}, "commonest answer": {"exact_match": 0.4}},
    "intervals": {"model": {"exact_match": [0.4, 0.6]}},
    "over_seeds": {"model": {"exact_match": {"mean": 0.5, "std": 0.01, "t95": [0.48, 0.52]}}},
    "by_question_type": {"single-verify": {"sequences": 1000, "exact_match": 0.6}},
    "macro_f1": {"model": 0.3}, "perturbed": {"noise": {"exact_match": 0.1}}, "missing": {"meteor": "WordNet is not there"},
}  # fmt: skip


def test_scores_are_shown_with_all_that_results_hold():
    tables = words.score_tables(RESULTS)
    assert tables[0].head == ("system", "exact match", "BLEU")
    assert tables[0].rows == (("model", "50.0 [40.0,\u00a060.0]", "25.0"), ("commonest answer", "40.0", "-"))
    assert tables[1].rows == (("model", "50.0\u00a0±\u00a01.0 [48.0,\u00a052.0]"),)
    by_caption = {table.caption: table.rows for table in tables[2:]}
    assert by_caption == {
        "The model by question type, in %": (("single-verify", "1,000", "60.0"),),
        "The model on spoilt ECGs, in %": (("noise", "10.0"),),
        "Macro F1 over the answers of closed questions, in %": (("model", "30.0"),),
    }
    assert "METEOR is missing: WordNet is not there" in words.score_notes(RESULTS)
    assert "1234 answers about 20 patients" in words.evaluated(RESULTS) and "seeds 0, 42" in words.evaluated(RESULTS)
    folder = words.evaluated(RESULTS | {"checkpoint_step": None, "checkpoint": "export", "seeds": [0]})
    assert "by 'export'. 3 answers" in folder


def test_scores_alone_are_enough():
    (table,) = words.score_tables({"scores": {"model": {"exact_match": 1.0}}})
    assert table.caption == "Scores in %" and table.rows == (("model", "100.0"),)
