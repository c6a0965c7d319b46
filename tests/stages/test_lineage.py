"""The table of settings that stages depend on."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import ServeSettings, Settings, stored_config
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.lineage import CHANGES_NO_OUTPUT, FIELDS, depends_on


def covered(name: str, listed: set[str]) -> bool:
    return name in listed or name.partition(".")[0] in listed


def every_setting() -> list[str]:
    names = []
    for part, value in asdict(Settings()).items():
        names += [f"{part}.{field}" for field in value] if isinstance(value, dict) else [part]
    return names


def test_every_setting_is_in_a_stages_list_or_changes_no_output():
    of_stages = {name for names in FIELDS.values() for name in names}
    for name in every_setting():
        assert covered(name, of_stages) != covered(name, set(CHANGES_NO_OUTPUT)), name


def test_no_list_names_a_setting_that_does_not_exist():
    known = {*every_setting(), *asdict(Settings())}
    assert {name for names in (*FIELDS.values(), CHANGES_NO_OUTPUT) for name in names} <= known


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"batch_size": 4}, {"patience": 1}])
def test_training_depends_on_what_changes_its_weights(change):
    settings = Settings()
    other = replace(settings, train=replace(settings.train, **change))
    assert depends_on("train", other) != depends_on("train", settings)


@pytest.mark.parametrize("change", [{"checkpoint_every": 7}, {"valid_batches": 3}])
def test_validation_counts_only_where_it_can_end_the_training(change):
    settings = Settings()
    patient = replace(settings, train=replace(settings.train, patience=5))
    for one, counts in ((settings, False), (patient, True)):
        other = replace(one, train=replace(one.train, **change))
        assert (depends_on("train", other) != depends_on("train", one)) == counts


def test_export_depends_on_the_positions_that_it_writes():
    settings = Settings()
    other = replace(settings, eval=replace(settings.eval, max_new_tokens=7))
    assert depends_on("export", other) != depends_on("export", settings)


def test_the_answers_of_a_folder_depend_on_its_content_and_number_types(monkeypatch, tmp_path):
    monkeypatch.setattr(lineage, "prepared", lambda *_: SimpleNamespace(require=lambda: "prepared"))
    digests = set()
    for folder, content, dtype in (
        ("a", "x", "float32"),
        ("b", "x", "float32"),
        ("b", "x", "bfloat16"),
        ("b", "y", "bfloat16"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "model.safetensors").write_text(content)
        settings = Settings()
        settings = replace(settings, eval=replace(settings.eval, checkpoint=str(tmp_path / folder)))
        settings = replace(settings, model=replace(settings.model, dtype=dtype))
        digests.add(lineage.answered(settings, Workdir(tmp_path)).digest())
    assert len(digests) == 3


def test_the_answers_of_an_untrained_model_depend_on_the_seed_of_its_weights(monkeypatch, tmp_path):
    """With data.seed, that of the questions is another one."""
    monkeypatch.setattr(lineage, "prepared", lambda *_: SimpleNamespace(require=lambda: "prepared"))

    def digest(seed: int, data_seed: int) -> str:
        settings = Settings(seed=seed, data=replace(Settings().data, seed=data_seed))
        settings = replace(settings, eval=replace(settings.eval, checkpoint="start"))
        return lineage.answered(settings, Workdir(tmp_path)).digest()

    assert digest(3, 3) == digest(3, -1) != digest(4, 3) != digest(5, 3)


def test_a_training_leaves_the_settings_of_its_encoders_own_training_in_config_json(tmp_path):
    """A command that trains the model need not repeat what only the first stage reads, and --run must not lose it."""
    first, workdir = Settings(), Workdir(tmp_path)
    first = replace(first, encoder=replace(first.encoder, kind="mtae", mask_share=0.5))
    second = replace(first, ecg_input=EcgInputConfig("encoder"), encoder=EncoderConfig("mtae", pretrained="random"))
    for settings, stage in ((first, "prepare"), (first, "pretrain"), (second, "train")):
        lineage.keep_settings(settings, workdir, stage)
    kept = Settings.of(stored_config(workdir.config))
    assert kept.encoder == replace(first.encoder, pretrained="random")
    assert depends_on("pretrain", kept) == depends_on("pretrain", first)
    other = replace(second, encoder=EncoderConfig("merl", "resnet18"))
    lineage.keep_settings(other, workdir, "train")
    assert Settings.of(stored_config(workdir.config)).encoder == other.encoder


def test_a_servers_token_is_not_written_into_config_json(tmp_path):
    """Which is exported, shown and copied; and its address alone would ask every later command for the token."""
    settings, workdir = Settings(serve=ServeSettings(host="0.0.0.0", token="secret")), Workdir(tmp_path)
    lineage.keep_settings(settings, workdir, "train")
    assert "secret" not in workdir.config.read_text() and Settings.of(stored_config(workdir.config)).serve == ServeSettings()


def test_a_headline_leaves_its_settings_to_be_gone_on_with_unless_a_training_has_left_its_own(tmp_path):
    """The page says how to rebuild it with --run, which reads them."""
    first, workdir = Settings(), Workdir(tmp_path)
    second = replace(first, train=replace(first.train, epochs=3.0), headline=replace(first.headline, seeds=(7,)))
    lineage.keep_settings(first, workdir, "prepare")
    lineage.keep_settings(second, workdir, "headline")
    assert Settings.of(stored_config(workdir.config)) == second
    workdir.train_marker.parent.mkdir()
    workdir.train_marker.touch()
    lineage.keep_settings(first, workdir, "train")
    lineage.keep_settings(second, workdir, "headline")
    assert Settings.of(stored_config(workdir.config)) == replace(first, headline=second.headline)


def test_trainings_of_several_seeds_share_the_data_of_one_and_its_questions():
    first, second = (replace(Settings(seed=seed), data=replace(Settings().data, seed=3)) for seed in (3, 4))
    alone = Settings(seed=3)
    for stage in ("synthetic data", "tokenizer", "prepare", "answers"):
        assert depends_on(stage, first) == depends_on(stage, second) == depends_on(stage, alone)
    for stage in ("train", "pretrain"):
        assert depends_on(stage, first) == depends_on(stage, alone) != depends_on(stage, second)
