"""What an export says of the form of inputs and answers."""

import json
from dataclasses import replace

import numpy as np

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.export.form import write_form, write_generation
from ecgbyte_jax.inputs.prompt import PromptIds, render_prompt
from ecgbyte_jax.settings import Settings
from tests.prompts import plain_prompt
from tests.small import small_config

IDS = PromptIds(bos=1, eos=2, pad=0, sig_start=3, sig_end=4, ecg=np.arange(100, 130, dtype=np.int32))


def test_the_cleaning_can_be_made_again_from_it(tmp_path):
    settings = Settings.of(small_config())
    write_form(tmp_path, settings, IDS, "")
    form = json.loads((tmp_path / "input.json").read_text())
    cleaning = {name: tuple(value) if isinstance(value, list) else value for name, value in form["ecg"]["cleaning"].items()}
    assert CleanConfig(**cleaning).band == (0.5, 20.0) and form["ecg"]["segment_samples"] == 100
    assert {name: getattr(settings.signal, name) for name in cleaning} == cleaning
    assert form["prompt"]["ids"] == {"bos": 1, "eos": 2, "pad": 0, "sig_start": 3, "sig_end": 4}
    assert form["prompt"]["max_length"] == 256


def test_the_place_of_vectors_is_said_and_no_names_of_tokens(tmp_path):
    write_form(tmp_path, Settings.of(small_config()), replace(IDS, vectors=4), "")
    form = json.loads((tmp_path / "input.json").read_text())
    assert (form["ecg"]["vectors"], form["ecg"]["place_id"]) == (4, 100) and "token_names" not in form["ecg"]
    ids = PromptIds(**form["prompt"]["ids"], ecg=np.array([100]), vectors=4)
    assert ids.spell(np.zeros((12, 100))).tolist() == replace(IDS, vectors=4).spell(np.zeros((12, 100))).tolist()


def test_a_prompt_without_bos_begins_with_the_ecg(tmp_path):
    for ids, order in ((IDS, ["bos", "<sig_start>"]), (replace(IDS, bos=None), ["<sig_start>", "ECG"])):
        write_form(tmp_path, Settings.of(small_config()), ids, "")
        prompt = json.loads((tmp_path / "input.json").read_text())["prompt"]
        assert prompt["order"][:2] == order and prompt["format"] == "plain"
        ecg, question = np.arange(30).repeat(20), np.array([50, 51])
        assert len(render_prompt(ids, plain_prompt(ids, question), [ecg], 256)) == 255  # a place is left for the answer


def test_a_chat_names_its_template_and_its_ends(tmp_path):
    config = small_config()
    config.prompt.format, config.model.pretrained = "chat", "folder"
    write_form(tmp_path, Settings.of(config), IDS, "You read ECGs.")
    prompt = json.loads((tmp_path / "input.json").read_text())["prompt"]
    assert prompt["format"] == "chat" and prompt["system"] == "You read ECGs." and "chat template" in prompt["order"]
    write_generation(tmp_path, Settings.of(config), IDS, (2, 9), 130, 133)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 9]


def test_rows_of_the_vocabulary_that_are_no_token_are_never_chosen(tmp_path):
    for rows, spare in ((133, [130, 131, 132]), (130, None)):
        write_generation(tmp_path, Settings.of(small_config()), IDS, (2,), 130, rows)
        generation = json.loads((tmp_path / "generation_config.json").read_text())
        assert generation["suppress_tokens"] == spare and generation["do_sample"] is False
        assert generation["eos_token_id"] == 2 and generation["max_new_tokens"] == 8
