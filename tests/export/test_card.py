"""What the card of an exported model says first, and what it never says."""

import shlex

import pytest

from ecgbyte_jax.export.card import make_card, write_card
from ecgbyte_jax.inputs.shards import Manifest, SplitSummary
from ecgbyte_jax.settings import Settings
from tests.small import small_config

SCORES = {"exact_match": 0.795, "rouge_2": 0.0}
SYSTEMS = {"model": SCORES, "another patient's ECG": SCORES, "commonest answer": SCORES}
RESULTS = {
    "split": "test", "sequences": 1000, "patients": 25, "checkpoint_step": 287,
    "scores": SYSTEMS, "intervals": {system: {"exact_match": [0.759, 0.827]} for system in SYSTEMS},
}  # fmt: skip
LATER = {
    "hidden": ["rouge_2"],
    "verdict": {"metric": "exact_match", "sentence": "reads the ECG: +34.2 [29.8, 38.5]",
                "over_commonest": "beats the commonest answer: +28.0 [25.1, 31.0]"},
    "by_recording": {"questions": 200, "scores": {"model": {"exact_match": 0.85}},
                     "intervals": {"model": {"exact_match": [0.8, 0.9]}},
                     "yes_no": {"questions": 250, "yes": 120,
                                "systems": {"model": {"sensitivity": 0.9, "specificity": None, "balanced_accuracy": None}}}},
}  # fmt: skip


@pytest.fixture
def card(tmp_path):
    """Writes the card of a config with these results, and returns its text."""

    def write(config=None, results=None, unevaluated="", temperature=0.0):
        splits = {name: SplitSummary(examples=4, sequences=20, ecg_cut=3) for name in ("train", "valid", "test")}
        manifest = Manifest(splits, [], {}, {}, {}, "plain", "", 0)
        settings = Settings.of(config or small_config())
        write_card(tmp_path, make_card("demo", 287, settings, manifest, results, unevaluated, temperature))
        return (tmp_path / "README.md").read_text()

    return write


def test_whether_the_data_are_synthetic_comes_first(card):
    config = small_config()
    assert card(config).split("# ECG-Byte model demo")[1].strip().startswith("**Trained on synthetic ECGs**")
    config.data.synthetic_records = 0
    text = card(config)
    assert text.split("# ECG-Byte model demo")[1].strip().startswith("**Trained on ECG-QA on PTB-XL: questions")
    assert "not a medical device" in text and "synthetic" not in text


def test_a_model_of_vectors_and_a_control_are_called_so(card):
    config = small_config()
    assert "becomes tokens that" in card(config) and "`ecg_tokenizer.json`" in card(config) and "A control" not in card(config)
    config.ecg_input.kind, config.ecg_input.vectors, config.data.ecg = "elf_patch", 4, "shuffled"
    text = card(config)
    assert "becomes 4 vectors that" in text and "`ecg_tokenizer.json`" not in text and "jax flax safetensors" in text
    assert "Longer ECGs are cut" not in text and "**A control:** it was trained with other patients' ECGs in the place" in text


def test_the_card_s_command_can_be_pasted_into_a_shell(card, monkeypatch):
    question = "Is the patient's ECG `normal`, $HOME?"
    monkeypatch.setattr("ecgbyte_jax.export.card._question", lambda _: question)
    command = next(line for line in card().splitlines() if line.startswith("python example.py RECORD "))
    assert shlex.split(command.partition("#")[0])[-1] == question


def test_a_model_without_an_evaluation_has_no_scores(card):
    text = card(unevaluated="The run has no evaluation.")
    assert "**Not evaluated.** The run has no evaluation." in text and "controls" not in text and "Verdict" not in text


def test_scores_stand_with_intervals_controls_and_the_verdict(card):
    text = card(results=RESULTS | LATER)
    for line in (
        "| | exact match |",
        "| model | 79.5 [75.9, 82.7] |",
        "| another patient's ECG | 79.5 [75.9, 82.7] |",
        "**Verdict:** reads the ECG: +34.2 [29.8, 38.5]; beats the commonest answer: +28.0 [25.1, 31.0]",
        "| model | 85.0 [80.0, 90.0] |",
        "| model | 90.0 | - | - |",
    ):
        assert line in text, line
    assert "rouge 2" not in text and "drawn at random" not in text


def test_results_of_an_earlier_version_have_no_verdict(card):
    text = card(results=RESULTS, temperature=0.6)
    assert "No verdict" in text and "| model | 79.5 [75.9, 82.7] | 0.0 |" in text and "temperature 0.6" in text
    assert "One vote" not in text and "yes or no" not in text


def test_patients_in_training_are_not_said_to_be_kept_apart(card):
    config = small_config()
    assert "none of them in training" in card(config, RESULTS)
    assert "on whom it was trained" in card(config, RESULTS | {"split": "train"})
    config.data.published_split = True
    assert "of whom some are in training too" in card(config, RESULTS)


def test_limits_name_what_was_not_tested(card):
    text = card(results=RESULTS)
    assert "3 of 20 of the prepared test segments" in text and "Not tested: noise" in text
    spoilt = card(results=RESULTS | {"perturbed": {"noise": {"exact_match": 0.5}}})
    assert "Not tested: noise" not in spoilt and "noise 50.0." in spoilt
