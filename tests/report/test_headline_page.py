from ecgbyte_jax.report.headline import Comparison, Row, render_headline, sentences

_COST = {
    **{"ecgs": 10, "patients": 5, "examples": 40, "first stage's segments": 0, "ecg tokens": 1, "text tokens": 2},
    **{"padding tokens": 3, "flops": 2.5e12, "first stage's flops": 0.0, "seconds": 7.5, "first stage's seconds": 0.0},
    **{"tokenizer's seconds": 0.5, "device_s": 7.0, "cpu_s": 9.0, "peak_memory": 2e9},
}


def row(name: str, score: float, gain: tuple[float, float] | None, reached: float | None) -> Row:
    difference = gain and {"mean": sum(gain) / 2, "interval": [*gain]}
    curve = [{"score": score, "examples": 1000.0, "flops": 1e12, "seconds": 3.0}]
    near = reached and {"score": 0.7, "examples": reached, "flops": 1e9 * reached, "seconds": 10 - reached / 1000}
    return Row(name, f"<{name}>", 1, score, [score - 0.05, score + 0.05], [score], 0.4, difference, curve, near, _COST)


def make(*rows: Row) -> Comparison:
    about = ("r", True, "ecg_qa", "2 layers x 32, from scratch", "python main.py", "test", 100, 20, "exact_match")
    return Comparison(*about, [0, 1], 0.5, 0.9, 0.7, [*rows])


def test_the_sentences_say_who_is_best_how_sure_that_is_and_who_needs_least():
    content = make(
        row("tokens", 0.8, None, 3000),
        row("merl", 0.85, (0.01, 0.09), 2000),
        row("elf", 0.79, (-0.05, 0.03), None),
        row("none", 0.5, (-0.4, -0.2), None),
    )
    best, compared, blind, cheapest = sentences(content)
    assert best.startswith("Best exact match: merl, 85.0 [80.0, 90.0]% of 100 questions about 20 patients, the mean of 2")
    assert compared.endswith("better: merl; worse: none; no different beyond chance: elf.")
    assert blind == "Not above the commonest answer (50.0%) beyond chance: none."
    assert cheapest.startswith(
        "90% of the best validation score (70.0%) is reached by tokens and merl: merl with the fewest ex"
    )
    assert cheapest.endswith("merl with the fewest FLOPs (2 T), tokens with the fewest seconds (7).")


def test_that_nothing_was_learned_is_said():
    assert sentences(make(row("tokens", 0.1, None, None)))[-1] == "No system has given a right answer to a validation question."


def test_the_page_has_every_system_and_nothing_from_the_network():
    page = render_headline(make(row("tokens", 0.8, None, 3000), row("none", 0.5, (-0.4, -0.2), None)))
    text = page.decode()
    assert "&lt;tokens&gt;" in text and text.count("not reached") == 3 and "2.5 T" in text
    assert "-30.0 [-40.0, -20.0]" in text and "http" not in text.replace("http-equiv", "")
    assert render_headline(make(row("tokens", 0.8, None, 3000), row("none", 0.5, (-0.4, -0.2), None))) == page
