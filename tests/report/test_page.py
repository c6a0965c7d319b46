"""The page: escapes what comes from data, asks for nothing outside, and says what is missing."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np

from ecgbyte_jax.corpora.read import CORPORA
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.explain.views import EcgView, View
from ecgbyte_jax.report import words
from ecgbyte_jax.report.folder import Chosen
from ecgbyte_jax.report.glossary import Glossary
from ecgbyte_jax.report.page import Example, Page, Picture, Table, picture, render
from ecgbyte_jax.report.sections import leads_cut, make_example, make_page, trace_json
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
    layered = picture(draw_compression({0: 1.0}), EVIL, EVIL, EVIL, draw_compression({0: 1.0}), EVIL)
    example = Example(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, True, ((EVIL, EVIL),), (layered,), (table,))
    empty = Example("2", "verify", f"q\ud800 {EVIL}", "", "", "", False)
    return Page(
        title=EVIL, introduction=EVIL, scores=[table], facts=[(EVIL, EVIL)], command=EVIL, verdict=[EVIL], verdict_note=EVIL,
        evidence=EVIL, chart=[shown], score_notes=[EVIL], examples=[example, empty], examples_note=EVIL, curves=[shown],
        curve_notes=[EVIL], data=[table], data_notes=[EVIL], tokenizer=[table], tokenizer_pictures=[shown],
        tokenizer_notes=[EVIL], settings=[table], settings_notes=[EVIL],
    )  # fmt: skip


def test_what_comes_from_data_is_text():
    text = render(evil_page()).decode()
    tags = Tags(text).found
    assert [tag for tag, _ in tags].count("script") == 1  # ours
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert not any("evil" in str(attributes.get("src")) for _, attributes in tags)
    assert "{{ 7*7 }}" in text and "&lt;script&gt;alert" in text and "49" not in re.sub(r"base64,[^\"]+|sha256-\S+", "", text)


def test_an_ecg_comes_to_its_script_as_it_is(rng):
    signal, weights, seen = rng.normal(0, 1, (12, 50)), np.repeat(rng.random((12, 10)), 5, axis=1), np.ones((12, 50), bool)
    seen[11, 30:] = False
    ecg = EcgView(signal, seen, np.empty(0, np.int32), {}, {"attention": weights})
    shown = json.loads(trace_json(ecg, 50.0, EVIL, 40 * signal))
    for name, true in (("signal", signal), ("original", np.clip(40 * signal, -32.768, 32.767))):
        found = np.frombuffer(base64.b64decode(shown[name]), "<i2").reshape(12, 50) / 1000
        np.testing.assert_allclose(found, true, atol=5.1e-4)
    lengths, relative = shown["attention"][::2], shown["attention"][1::2]
    np.testing.assert_allclose(np.repeat(relative, lengths).reshape(12, 50), weights / weights.max(), atol=1e-5)
    assert shown["leads"] == list(LEADS) and shown["seen"] == [50] * 11 + [30] and len(lengths) <= 120
    plain = EcgView(signal, np.ones((12, 50), bool), np.empty(0, np.int32), {}, {})
    assert not {"attention", "original", "seen"} & set(json.loads(trace_json(plain, 50.0, "a")))
    example = Example(
        "1", "verify", "q", "", "", "", True, (), (Picture("data:,", 1, 1, "a", "a", "a", trace=trace_json(ecg, 1, EVIL)),)
    )
    tags = Tags(render(Page("run", "", [], examples=[example])).decode()).found
    (kept,) = [json.loads(attributes["data-trace"]) for _, attributes in tags if "data-trace" in attributes]
    assert kept["name"] == EVIL


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
    assert len(images) == 5 and all(image["alt"] and image["width"] and image["height"] for image in images)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    labels = {attributes["for"] for tag, attributes in tags if tag == "label" and "for" in attributes}
    assert labels == {attributes["id"] for tag, attributes in tags if tag == "select"}
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag in ("main", "header", "nav", "footer"):
        assert sum(found == tag for found, _ in tags) == 1
    assert dict(tags)["html"]["lang"] == "en"


def test_examples_can_be_filtered_by_their_type_and_by_whether_they_are_right():
    text = render(evil_page()).decode()
    articles = [attributes for tag, attributes in Tags(text).found if tag == "article"]
    assert [(one["data-type"], one["data-verdict"]) for one in articles] == [(EVIL, "right"), ("verify", "wrong")]
    options = [html.unescape(option) for option in re.findall("<option[^>]*>(.*?)</option>", text)]
    assert options == ["all", EVIL, "verify", "all", "right", "wrong"]


def test_an_answer_is_marked_as_right_or_wrong():
    tags = Tags(render(evil_page()).decode()).found
    assert [found["class"] for tag, found in tags if tag == "dd" and "class" in found] == ["right", "wrong"]


def test_without_a_script_attention_is_shown_and_can_be_switched_off():
    page = evil_page()
    text = render(page).decode()
    tags = Tags(text).found
    assert [a.get("class") for tag, a in tags if tag == "img" and a["alt"] == EVIL].count("layer") == 1
    switches = [a for tag, a in tags if tag == "input"]
    assert len(switches) == 1 and "checked" in switches[0]
    assert "figure:has(.switch input:not(:checked)) .layer { visibility: hidden; }" in text
    filter = next(a for tag, a in tags if tag == "form")
    assert "hidden" in filter, "what needs the script is not offered without it"


def test_terms_are_links_to_their_explanations_and_stop_the_tab_key_once():
    glossary = Glossary()
    assert "tabindex" not in glossary.link("BLEU & mean BLEU")
    again = glossary.link("BLEU, rollout of two segments; nobleus, segment_length, <b>")
    links = re.findall(r'<a class="term" href="#([\w-]+)"( tabindex="-1")?>([^<]+)</a>', again)
    assert links == [
        ("term-bleu", ' tabindex="-1"', "BLEU"), ("term-rollout", "", "rollout"), ("term-segment", "", "segments")
    ]  # fmt: skip
    assert "&lt;b&gt;" in again
    assert [term for _, term, _ in glossary.entries()] == ["BLEU", "mean BLEU", "rollout", "segment"]
    text = render(Page("run", "reads tokens", [Table("Scores", ("system", "METEOR"), ())])).decode()
    ids = {attributes["id"] for _, attributes in Tags(text).found if "id" in attributes}
    targets = {a["href"][1:] for tag, a in Tags(text).found if tag == "a"}
    assert {"term-token", "term-meteor"} <= targets <= ids


def test_it_says_that_this_is_no_medical_device():
    assert b"Research software, not a medical device." in render(Page("run", "", []))


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
        "The model by question type and segment, in %": (("single-verify", "1,000", "60.0"),),
        "The model on spoilt ECGs, by segment, in %": (("noise", "10.0"),),
        "Macro F1 over the answers of closed questions, by segment, in %": (("model", "30.0"),),
    }
    assert "METEOR is missing: WordNet is not there" in words.score_notes(RESULTS)
    assert "1,234 answers about 20 patients" in words.evaluated(RESULTS) and "seeds 0, 42" in words.evaluated(RESULTS)
    folder = words.evaluated(RESULTS | {"checkpoint_step": None, "checkpoint": "export", "seeds": [0]})
    assert "by 'export'. 3 answers" in folder


def test_spoilt_ecgs_are_shown_with_intervals_and_what_they_cost():
    cost = {"noise": {"exact_match": {"mean": 0.4, "interval": [0.3, 0.5]}}}
    bounds = {"noise": {"exact_match": [0.05, 0.15]}}
    *_, scores, drops = words.score_tables(RESULTS | {"perturbed_intervals": bounds, "drops": cost})
    assert scores.rows == (("noise", "10.0 [5.0,\u00a015.0]"),) and drops.rows == (("noise", "40.0 [30.0,\u00a050.0]"),)


def test_label_scores_are_shown_by_label_with_their_calibration():
    scores = {"model": {"auroc": 0.9, "f1": None}, "another patient's ECG": {"auroc": 0.5, "f1": None}}
    bounds = {"model": {"auroc": [0.8, 1.0], "f1": None}, "another patient's ECG": {"auroc": [0.4, 0.6], "f1": None}}
    label = {"recordings": 1500, "positives": 7, "scores": scores, "intervals": bounds}
    named = [label | {"question": "Rhythm?", "answer": "AF"}, label | {"question": "Low?", "answer": "yes", "positives": 9}]
    overall = {system: row | {"calibration_error": 0.125} for system, row in scores.items()}
    part = {"labels": 2, "answers": 3000, "scores": overall, "intervals": bounds, "by_label": named}
    part["calibration"] = [{"probability": 0.75, "right": 0.5, "answers": 3000}]
    *_, means, each = words.score_tables(RESULTS | {"labels": part})
    assert means.head == ("system", "AUROC", "F1", "calibration error")
    assert means.rows[0] == ("model", "90.0 [80.0,\u00a0100.0]", "-", "12.5")
    assert each.head == ("question and answer", "recordings", "AUROC", "F1", "AUROC, another patient's ECG")
    assert each.rows[0] == ("Low? yes", "9 of 1,500", "90.0 [80.0,\u00a0100.0]", "-", "50.0")
    (shown,) = make_page("a", RESULTS | {"labels": part}, {}).score_pictures
    assert "50% right at 75%" in shown.alt and "of 3,000 answers: a calibration error of 12.5%" in shown.caption
    assert shown.uri in render(make_page("a", RESULTS | {"labels": part}, {})).decode()


def test_scores_alone_are_enough():
    (table,) = words.score_tables({"scores": {"model": {"exact_match": 1.0}}})
    assert table.caption == "Scores in %" and table.rows == (("model", "100.0"),)


VERDICT = {
    "verdict": {"metric": "exact_match", "sentence": "reads the ECG: +34.2 [29.8, 38.5]", "evidence": "reads",
                "over_commonest": "beats the commonest answer: +10.0 [5.1, 31.0]", "differences": {}},
    "hidden": ["bleu"],
    "by_recording": {"questions": 200, "scores": {"model": {"exact_match": 0.6, "bleu": 0.1}},
                     "intervals": {"model": {"exact_match": [0.5, 0.7]}},
                     "yes_no": {"questions": 250, "yes": 120,
                                "systems": {"model": {"sensitivity": 0.9, "specificity": None}}}},
}  # fmt: skip


def test_the_verdict_is_repeated_and_its_score_is_compared_by_recording():
    sentences, note = words.verdict(RESULTS | VERDICT)
    assert sentences == ["Reads the ECG: +34.2 [29.8, 38.5]", "Beats the commonest answer: +10.0 [5.1, 31.0]"]
    assert "exact match" in note and words.verdict(RESULTS) == ([], "")
    metric, scores, intervals, counted = words.compared(RESULTS | VERDICT)
    assert (metric, scores, intervals) == ("exact match", {"model": 0.6}, {"model": [0.5, 0.7]}) and "200 questions" in counted
    metric, scores, intervals, counted = words.compared(RESULTS)
    assert scores == {"model": 0.5, "commonest answer": 0.4} and intervals == {"model": [0.4, 0.6]} and "1,234" in counted


def test_scores_that_say_nothing_are_hidden_in_every_table():
    tables = words.score_tables(RESULTS | VERDICT | {"by_attribute": {"a": {"bleu": 0.1, "exact_match": 0.2}}})
    kinds = {"a": {"hidden": ["bleu"], "bleu": 0.0}, "b": {"hidden": [], "bleu": 0.5}}
    rows = {table.caption: table.rows for table in words.score_tables(RESULTS | {"by_attribute": kinds})}
    assert rows["The model by attribute and segment, in %"] == (("a", "-"), ("b", "50.0"))
    bounds = {"by_attribute_intervals": {"b": {"bleu": [0.4, 0.6]}}}
    rows = {table.caption: table.rows for table in words.score_tables(RESULTS | {"by_attribute": kinds} | bounds)}
    assert rows["The model by attribute and segment, in %"][1] == ("b", "50.0 [40.0,\u00a060.0]")
    assert tables[0].rows == (("model", "60.0 [50.0,\u00a070.0]"),) and tables[1].rows[0][0] == "model"
    assert "Left out, since every reference is one word: BLEU." in words.score_notes(RESULTS | VERDICT)
    (answers,) = [table for table in tables if "250 questions, 120 of them with 'yes'" in table.caption]
    assert answers.head == ("system", "sensitivity", "specificity") and answers.rows == (("model", "90.0", "-"),)


def test_a_number_of_parameters_is_rounded_for_people():
    shown = {99_999: "99,999", 739_584: "0.74 million", 99_600_000: "100 million", 999_600_000: "1 billion"}
    assert {count: words.model_fact({}, count) for count in shown} == {n: f"{text} parameters" for n, text in shown.items()}


def test_whether_ones_own_ecgs_are_real_is_not_claimed():
    own, ptbxl = (words.data_fact(CORPORA[name]._asdict()) for name in ("own", "ptbxl"))
    assert own == "a table of one's own: whether its ECGs are real is not known here" and "real ECGs" in ptbxl


def test_synthetic_data_is_said_in_the_title_and_first_of_all():
    data = {"synthetic_records": 500, **CORPORA["ecg_qa"]._asdict()}
    page = make_page("demo", RESULTS | VERDICT, data)
    assert "synthetic" in page.title and "synthetic" in page.introduction.split(":")[0]
    assert "500 recordings" in dict(page.facts)["Data"] and len(page.chart) == 1
    real = make_page("run", RESULTS, {"synthetic_records": 0, **CORPORA["ptbxl"]._asdict()})
    assert real.title == "ECG-Byte on PTB-XL: run run" and "real ECGs" in dict(real.facts)["Data"]
    unknown = make_page("run", RESULTS, {})
    assert "unknown" in unknown.introduction and dict(unknown.facts)["Data"] == "unknown"


def test_the_model_is_named_with_its_size():
    trained = {"model": {"pretrained": "", "width": 128, "layers": 2}, "lora": {"rank": 0}}
    assert words.model_fact(trained, 740_000).endswith("2 layers of width 128, 0.74 million parameters")
    tuned = {"model": {"pretrained": "/models/Llama-3.2-1B/"}, "lora": {"rank": 16}}
    assert words.model_fact(tuned, 1_240_000_000) == "Llama-3.2-1B, LoRA of rank 16, 1.2 billion parameters"
    assert words.model_fact({}, 0) == "unknown"


def test_leads_at_an_end_of_the_tokenizers_range_are_named_unless_the_original_stays_within():
    quantizer = Quantizer(-0.5, 0.5)  # cuts at -1 and 1 mV
    original = np.zeros((12, 50))
    original[LEADS.index("V2"), 10], original[LEADS.index("V3"), 10] = 1.7, 0.99
    restored = quantizer.decode(quantizer.encode(original))
    assert leads_cut(restored, quantizer) == ["V2", "V3"] and leads_cut(restored, quantizer, original) == ["V2"]
    view = View((EcgView(restored, np.ones((12, 50), bool), np.empty(0, np.int32), {}, {}),), (), {}, {}, 0.0)
    row = {"id": "a", "segment": 0, "question": "q", "reference": "r", "answer": "r"}
    (shown,) = make_example(Chosen(row, 1.0), view, 50.0, quantizer, [original]).pictures
    assert "cuts at -1.00 and 1.00 mV, here in V2; in grey, the cleaned original." in shown.caption
    assert "2 s" not in shown.caption and "1 s at 50 Hz, a low rate" in shown.caption
    (plain,) = make_example(Chosen(row, 1.0), view, 500.0, quantizer, None).pictures
    assert "here in V2, V3." in plain.caption and "low rate" not in plain.caption and plain.uri != shown.uri
