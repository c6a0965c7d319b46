"""ECGBench as a test of models that were trained elsewhere: what is read, printed and refused."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ecgbyte_jax.corpora.benchmarks.ecg_bench import pictures_in, read_tests
from ecgbyte_jax.errors import ConfigError, CorpusError
from ecgbyte_jax.prepare.corpus import open_corpus
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.pipeline import run
from experiments import ecgbench
from tests.corpora.test_challenge import write as write_challenge
from tests.corpora.test_conversations import TALK, root, write_parquet  # noqa: F401 (a fixture)

LISTED = [{"from": "human", "value": ["<image>\nWhich? Options: sinus rhythm, pvc"]}]
LISTED += [{"from": "gpt", "value": ["sinus rhythm", "pvc"]}]


@pytest.fixture
def sets(root) -> Path:  # noqa: F811
    write_challenge(root / "georgia", "g1/E00001")
    for folder, path, talk in (
        ("ptb-test", "ptb-xl/00001_hr-0.png", TALK),
        ("ecgqa-test", "ptb-xl/00002_hr-0.png", LISTED),
        ("g12-test-no-cot", "g12/E00001-0.png", TALK),
        ("arena", "ecg-arena/1.png", [{"question": "x", "answer": "y"}]),
    ):
        rows = [{"image": {"bytes": b"png"}, "image_path": path, "conversations": talk}]
        write_parquet(root / f"ECGBench/{folder}/test-00000-of-00001.parquet", rows)
    return root


def open_tests(config, root):  # noqa: F811
    config.data.corpus, config.data.synthetic_records, config.data.root = "ecg_bench", 0, str(root)
    config.tokenizer.file = config.model.pretrained = "a trained model's"
    settings, workdir = Settings.of(config), Workdir(root / "w")
    return open_corpus(settings, workdir, lineage.synthetic(settings, workdir))


def test_every_question_is_a_test_of_its_set_and_pictures_without_recordings_are_left_out(sets):
    examples = list(read_tests(sets / "ECGBench", sets, 500))
    assert {e.split for e in examples} == {"test"} and pictures_in(sets / "ECGBench") == ["arena"]
    assert {e.meta["question_type"]: (e.patient, e.answer) for e in examples} == {
        "ptb-test": ("ptbxl 1", "Sinus rhythm."),
        "ecgqa-test": ("ptbxl 1", "sinus rhythm, pvc"),
        "g12-test-no-cot": ("georgia E00001", "Sinus rhythm."),
    }


def test_the_same_sets_as_json_files_are_known_by_their_names(sets):
    (sets / "json").mkdir()
    for name in ("ptb-test", "mmmu-ecg"):
        entries = [{"image": "ptb-xl/00001_hr-0.png", "conversations": TALK}]
        (sets / f"json/{name}.json").write_text(json.dumps(entries))
    assert [e.meta["question_type"] for e in read_tests(sets / "json", sets, 500)] == ["ptb-test"]


def test_recordings_in_the_training_split_of_their_own_set_are_counted(sets, config, capsys):
    corpus = open_tests(config, sets)
    corpus.set_aside([])
    own = {record: example.meta["own_split"] for example in corpus.examples for record in example.records}
    seen = sum(split == "train" for split in own.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert seen and f"{seen} of {len(own)} tested recordings are in the training split of their own set" in printed
    assert "left out, as their pictures are of no recording: arena" in printed
    corpus.examples = []
    with pytest.raises(CorpusError, match="none of them usable as a test"):
        corpus.set_aside([])


def test_a_benchmark_without_a_trained_model_or_with_a_training_is_refused(sets, config):
    with pytest.raises(ConfigError, match=r"has only test questions, so it needs a trained model's tokenizers"):
        config.data.corpus, config.data.synthetic_records, config.data.root = "ecg_bench", 0, str(sets)
        settings = Settings.of(config)
        open_corpus(settings, Workdir(sets / "w"), lineage.synthetic(settings, Workdir(sets / "w")))
    with pytest.raises(ConfigError, match=r"--stage: \['train'\] found with data.corpus 'ecg_bench'"):
        run(config, sets / "w", ["prepare", "train", "eval"])


def test_the_experiment_takes_the_settings_of_a_run_and_its_export(tmp_path, config):
    config.signal.segment_length, config.lora.rank, config.data.max_segments = 250, 4, 2
    (tmp_path / "config.json").write_text(json.dumps(asdict(Settings.of(config))))
    with pytest.raises(ConfigError, match=r"no exported model there; python main.py --run=\S+ --stage=export makes it"):
        ecgbench.get_config(str(tmp_path))
    (tmp_path / "export").mkdir()
    (tmp_path / "export/ecg_tokenizer.json").touch()
    settings = Settings.of(ecgbench.get_config(str(tmp_path)))
    assert settings.model.pretrained == settings.eval.checkpoint == str(tmp_path / "export")
    assert settings.tokenizer.file == str(tmp_path / "export/ecg_tokenizer.json") and settings.lora.rank == 0
    assert (settings.signal.segment_length, settings.data.max_segments, settings.data.corpus) == (250, 2, "ecg_bench")
