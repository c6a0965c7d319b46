"""Settings: types, rules, and how mistakes are reported."""

import json
import math
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path

import pytest

from ecgbyte_jax.corpora.read import check_data
from ecgbyte_jax.errors import ConfigError, SettingsError
from ecgbyte_jax.setting_names import expected_values, nearest_settings, setting_fields
from ecgbyte_jax.settings import Settings, default_config, part_config, stored_config
from experiments import demo

EXPERIMENTS = sorted({path.stem for path in Path(__file__).parents[1].glob("experiments/*.py")} - {"common", "stored"})


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("argument", ["", "tiny"])
def test_every_experiment_gives_settings(name, argument):
    experiment = import_module(f"experiments.{name}")
    if argument and f"{name}.py:runs/" in experiment.__doc__:
        with pytest.raises(ConfigError, match=r"the config\.json of a run expected"):
            experiment.get_config(argument)
    elif argument and ":tiny" not in experiment.__doc__:
        with pytest.raises(ValueError, match="argument 'tiny' found"):
            experiment.get_config(argument)
    else:
        assert Settings.of(experiment.get_config(argument)).seed == 0


def test_defaults_are_settings_themselves():
    assert Settings.of(default_config()) == Settings()


def test_all_mistakes_are_reported_at_once_by_their_names():
    config = default_config()
    config.train.batch_size = 0
    config.signal.order = 99
    config.eval.seeds = (1, 1)
    with pytest.raises(SettingsError) as error:
        Settings.of(config)
    assert error.value.problems == [
        "signal.order: 99 found, 1 to 10 expected",
        "train.batch_size: 0 found, at least 1 expected",
        "eval.seeds: (1, 1) found, one whole number or more, none twice, each from 0 to 4294967295 expected",
    ]


def test_unknown_settings_are_named():
    config = default_config()
    with config.unlocked():
        config.train.batchsize = 64
        config.trian = 1
    with pytest.raises(SettingsError, match=r"^trian: no such setting; train\.batchsize: no such setting$"):
        Settings.of(config)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "batch_size", "four"),
        ("train", "batch_size", True),
        ("data", "packing", 1),
        ("data", "length_buckets", (1.5, 2)),
        ("train", "epochs", float("inf")),
        ("train", "epochs", float("nan")),
        ("model", "kv_heads", 3),
        ("lora", "targets", ("q", "nose")),
    ],
)
def test_values_of_another_type_or_against_a_rule_are_refused(part, name, value):
    with pytest.raises(SettingsError, match=f"^{name}: .* found, .* expected$"):
        replace(getattr(Settings(), part), **{name: value})


def test_a_config_that_was_stored_as_json_gives_the_same_settings():
    config = demo.get_config()
    stored = type(config)(json.loads(config.to_json_best_effort()))
    assert Settings.of(stored) == Settings.of(config)


def test_every_setting_has_a_meaning():
    for part in fields(Settings()):
        for field in fields(getattr(Settings(), part.name)) if part.name != "seed" else [part]:
            assert field.metadata["meaning"], f"{part.name}.{field.name}"


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.epochs", math.inf),
        ("train.epochs", math.nan),
        ("optim.peak_rate", math.inf),
        ("optim.clip_norm", math.inf),
        ("optim.weight_decay", -0.1),
        ("optim.b2", 1.0),
        ("lora.alpha", 0.0),
        ("model.rope_theta", math.inf),
        ("eval.temperature", math.inf),
        ("signal.target_rate", math.inf),
        ("signal.max_amplitude", math.inf),
        ("signal.notches", (50.0, math.inf)),
        ("signal.notches", ("50",)),
        ("signal.band", (0.5, math.inf)),
        ("signal.band", ("a", "b")),
        ("data.length_buckets", (320, "x")),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(name, value):
    part, field = name.split(".")
    with pytest.raises(SettingsError, match=rf"^{field}: .* found, .* expected"):
        replace(getattr(Settings(), part), **{field: value})


def test_settings_that_do_not_fit_each_other_are_refused():
    defaults = Settings()
    with pytest.raises(SettingsError, match=r"'wander' needs one sample rate"):
        replace(defaults, signal=replace(defaults.signal, target_rate=0.0), eval=replace(defaults.eval, perturb=("wander",)))
    with pytest.raises(SettingsError, match=r"targets: none found"):
        replace(defaults.lora, rank=4, targets=())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt.format": "chat"}, "'chat' found without model.pretrained"),
        ({"data.questions_together": 2}, "questions_together: 2 found, which needs prompt.format 'chat'"),
        ({"train.turns": "last"}, "turns: 'last' found, which needs prompt.format 'chat'"),
        ({"model.new_rows": "waveform"}, "'waveform' found without model.pretrained"),
        ({"lora.first_layer": 2}, "first_layer: 2 found with lora.rank 0"),
        ({"model.quantize": "nf4", "lora.rank": 4}, "'nf4' found, which needs lora.rank above 0 and model.pretrained"),
        ({"model.quantize": "int8", "model.pretrained": "m"}, "'int8' found, which needs lora.rank above 0"),
        ({"optim.embedding_rate": 0.5, "lora.rank": 4}, "embedding_rate: 0.5 found, which needs model.train_new_embeddings"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, message):
    config = demo.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(SettingsError) as caught:
        Settings.of(config)
    assert len(caught.value.problems) == 1 and message in str(caught.value)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = default_config()
    paths = [
        ("data", "root"), ("data", "ecgqa_root"), ("data", "translations"), ("data", "conversations"), ("data", "table"),
        ("prepare", "cache"), ("tokenizer", "file"), ("model", "pretrained"), ("eval", "bertscore_model"),
    ]  # fmt: skip
    for part, name in paths:
        config[part][name] = "~/folder"
    settings = Settings.of(config)
    assert {getattr(getattr(settings, part), name) for part, name in paths} == {"/home/somebody/folder"}


def test_whole_numbers_and_floats_are_the_same_settings():
    config = default_config()
    config.signal.notches = (50, 60)
    assert repr(Settings.of(config)) == repr(Settings())


@pytest.mark.parametrize("value", ["x" * 5000, "a\0b"])
def test_a_path_that_no_system_has_is_refused_in_one_line(value):
    with pytest.raises(SettingsError, match=r"^checkpoint: .* expected"):
        replace(Settings().eval, checkpoint=value)


def test_an_experiment_cannot_misspell_a_setting():
    with pytest.raises(AttributeError, match="batchsize"):
        default_config().train.batchsize = 64


def stored(folder, **changes):
    """A run's config.json, with some of its parts changed, or left out where None."""
    content = json.loads(demo.get_config().to_json_best_effort()) | changes
    path = folder / "config.json"
    path.write_text(json.dumps({name: part for name, part in content.items() if part is not None}))
    return path


def test_the_settings_of_a_run_are_read_back_but_not_how_its_processes_were_joined(tmp_path):
    config = stored_config(stored(tmp_path, distributed={"initialize": True, "processes": 8}, attend=None, export=None))
    assert Settings.of(config) == Settings.of(demo.get_config())
    assert isinstance(config.eval.seeds, tuple) and config.is_locked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None, "train": None}, "no settings of model, train: no training has finished here"),
        ({"architectures": []}, r"\['architectures'\] found, the settings of a run expected"),
        ({"train": {"batchsize": 2}}, "train.batchsize: no such setting"),
        ({"train": 5}, "train.5: no such setting"),
    ],
)
def test_a_file_that_is_no_run_s_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config.json: {message}"):
        stored_config(stored(tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", b"\xff".decode("latin-1") + "{"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config.json: [^\n]* expected[^\n]*$"):
        stored_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "optim.peak_rate"),
        ("learning_rate", "optim.peak_rate"),
        ("train.batchsize", "train.batch_size"),
        ("model.widht", "model.width"),
        ("dropout", "lora.dropout"),
        ("wd", "optim.weight_decay"),
    ],
)
def test_a_misspelt_or_foreign_name_leads_to_the_setting_that_is_meant(name, meant):
    assert nearest_settings(name)[0] == meant
    assert meant in setting_fields()


def test_a_name_like_no_other_leads_nowhere():
    assert nearest_settings("zzz") == []


def test_what_a_setting_accepts_is_said_in_words():
    assert expected_values("train.batch_size") == "a value of type int, at least 1"
    assert expected_values("seed") == "a value of type int, 0 to 4294967295"
    assert expected_values("eval.perturb").startswith("a tuple of str, some of ")


MIXED = {"corpus": "mixture", "mixture": {"ptbxl": 1.0, "mine": 3.0, "cpsc": 0.0}, "parts": {"mine": {"corpus": "own"}}}


def test_a_part_of_a_mixture_has_its_own_settings_and_else_those_of_the_whole(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = default_config()
    config.data.corpus, config.data.mixture, config.data.sample_rate = "mixture", {"ptbxl": 1.0, "mine": 3.0, "cpsc": 0.0}, 100
    config.data.parts = {"mine": part_config(corpus="own", root="~/mine")}
    data = Settings.of(config).data
    assert data.shares == {"mine": 0.75, "ptbxl": 0.25}
    mine, ptbxl = data.part("mine"), data.part("ptbxl")
    assert (mine.corpus, mine.root, mine.sample_rate, mine.mixture) == ("own", "/home/somebody/mine", 100, {})
    assert (ptbxl.corpus, ptbxl.root) == ("ptbxl", data.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"ptbxl": -1.0, "mine": 3.0}}, "finite weights of 0 or more, at least one above 0 expected"),
        ({"mixture": {"ptbxl": 0.0, "mine": 0.0}}, "at least one above 0 expected"),
        ({"mixture": {"ptbxl": math.nan, "mine": 1.0}}, "finite weights"),
        ({"mixture": {"ptbxl": "1", "mine": 1.0}}, "values of type float by name expected"),
        ({"mixture": {"a/b": 1.0, "mine": 1.0}}, "names of letters"),
        ({"mixture": {}}, "mixture: {} found with data.corpus 'mixture'"),
        ({"corpus": "ptbxl"}, "found with data.corpus 'ptbxl'; weights with 'mixture' expected"),
        ({"published_split": True}, "published_split: True found with a mixture"),
        ({"parts": {"code15": {}}}, "parts.code15: found without a weight in data.mixture"),
        ({"parts": {"mine": {"rot": "x"}}}, "parts.mine.rot: no such setting"),
        ({"parts": {"mine": {"seed": 1}}}, "parts.mine.seed: not a setting of one corpus"),
        ({"parts": {"mine": {"sample_rate": 7}}}, "parts.mine.sample_rate: 7 found"),
        ({"parts": {"mine": {"corpus": "mixture"}}}, "parts.mine.corpus: 'mixture' found, a single corpus expected"),
        ({"parts": {"mine": {"corpus": "ptbxl"}}}, "parts.ptbxl: the corpus and settings of 'mine' found again"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_in_one_line(changes, message):
    with pytest.raises(SettingsError) as caught:
        replace(Settings().data, **MIXED | changes)
    assert len(caught.value.problems) == 1 and message in str(caught.value)


def test_flags_can_change_every_part_of_a_stored_mixture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(asdict(replace(Settings(), data=replace(Settings().data, **MIXED)))))
    config = stored_config(tmp_path / "config.json")
    assert Settings.of(config).data.part("mine") == replace(Settings().data, **MIXED).part("mine")
    config.data.parts.ptbxl.root = "elsewhere"
    assert Settings.of(config).data.part("ptbxl").root == "elsewhere"


def test_a_mixture_names_the_corpus_that_is_unknown_or_has_tests_alone():
    for name, message in (("mine", "data.parts.mine.corpus: 'mine' found"), ("ecg_bench", "has only test questions")):
        with pytest.raises(SettingsError, match=message):
            check_data(replace(Settings().data, corpus="mixture", mixture={"ptbxl": 1.0, name: 1.0}))


def test_weights_for_the_tokenizer_need_a_mixture_and_a_sample():
    tokenizer = replace(Settings().tokenizer, by_weight=True)
    for data, sampling in ((Settings().data, "random"), (replace(Settings().data, **MIXED), "all")):
        with pytest.raises(SettingsError, match=r"tokenizer\.by_weight"):
            Settings(data=data, tokenizer=replace(tokenizer, sampling=sampling))
    assert Settings(data=replace(Settings().data, **MIXED), tokenizer=replace(tokenizer, sampling="random"))
