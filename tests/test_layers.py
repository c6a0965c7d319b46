"""Which folder may import which (the table in CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ecgbyte_jax"
BASE = {"errors", "files", "rules"}  # which every folder may import
MOST_FILES = 16
ALLOWED = {
    "ecg": {"ecg"},
    "model": {"model"},
    "encoders": {"encoders"},
    "run": {"run"},
    "corpora": {"corpora", "ecg", "settings"},
    "inputs": {"inputs", "ecg", "corpora", "run"},
    "prepare": {"prepare", "ecg", "corpora", "inputs", "run", "settings"},
    "evaluate": {"evaluate", "ecg", "inputs", "model", "run", "settings"},
    "train": {"train", "ecg", "encoders", "inputs", "model", "run", "settings", "evaluate"},
    "fit": {"fit", "ecg", "encoders", "inputs", "model", "pretrain", "run", "settings", "train"},
    "pretrain": {"pretrain", "encoders", "inputs", "model", "prepare", "run", "settings", "stages", "train"},
    "explain": {"explain", "ecg", "inputs", "model", "run", "settings", "evaluate", "train"},
    "report": {"report", "ecg", "explain"},
    "export": {"export", "ecg", "encoders", "corpora", "inputs", "settings"},
    "asking": {"asking", "ecg", "evaluate", "inputs", "report", "run", "settings", "train"},
    "serve": {"serve", "asking", "ecg", "corpora", "evaluate", "explain", "inputs", "model", "prepare", "run", "settings",
              "stages", "train"},
    "stages": {"stages", "asking", "serve", "settings", "encoders", "setting_names", "ecg", "corpora", "inputs", "model",
               "run", "prepare", "evaluate", "train", "explain", "report", "export", "fit", "pretrain", "sweep"},
    "sweep": {"sweep", "encoders", "evaluate", "pretrain", "report", "run", "settings", "stages", "train"},
}  # fmt: skip
ALLOWED_FILES = {
    "settings": {"ecg", "encoders.config", "model.config"},
    "setting_names": {"settings"},
    "main": {"run", "setting_names", "stages"},
    "rules": set(),
    "files": set(),
    "errors": set(),
}


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    """The folders and top-level files of the package that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("ecgbyte_jax.")}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folder_imports_only_what_it_may(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert rooms(path) - BASE <= ALLOWED[folder], path


@pytest.mark.parametrize("file", sorted(ALLOWED_FILES))
def test_top_level_file_imports_only_what_it_may(file):
    names = {name.removeprefix("ecgbyte_jax.") for name in imported(PACKAGE / f"{file}.py") if name.startswith("ecgbyte_jax.")}
    for name in names:
        assert name.split(".")[0] in BASE or any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED_FILES[file]), name


def test_report_knows_the_views_of_an_explanation_alone():
    for path in (PACKAGE / "report").glob("*.py"):
        assert {name for name in imported(path) if ".explain" in name and ".views" not in name} == set(), path


def test_pretraining_knows_of_the_stages_lineage_and_tokenizer_alone():
    for path in (PACKAGE / "pretrain").glob("*.py"):
        known = {name.split(".")[2] for name in imported(path) if name.startswith("ecgbyte_jax.stages.")}
        assert known <= {"lineage", "tokenizer"}, path


def test_fit_knows_of_pretraining_no_stage():
    for path in (PACKAGE / "fit").glob("*.py"):
        known = {name.split(".")[2] for name in imported(path) if name.startswith("ecgbyte_jax.pretrain.")}
        assert known <= {"objective", "text_encoder", "vision_weights"}, path


def test_every_folder_and_file_is_in_the_table():
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)
    assert {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"} == set(ALLOWED_FILES)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_no_folder_is_too_full_to_be_read_at_a_glance(folder):
    assert len(list((PACKAGE / folder).glob("*.py"))) <= MOST_FILES


def test_settings_come_as_configdict_at_the_door_alone():
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "ConfigDict" in path.read_text()}
    assert users == {"settings.py", "stages/pipeline.py"}


def test_paths_of_a_runs_folder_are_spelt_in_one_place():
    spelt = {
        "checkpoints",
        "generations.jsonl",
        "results.json",
        "metrics.jsonl",
        "report.html",
        "config.json",
        "quarantine.jsonl",
    }
    for path in PACKAGE.rglob("*.py"):
        divided = [node.right for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.BinOp)]
        literals = {node.value for node in divided if isinstance(node, ast.Constant)}
        assert path.name in ("workdir.py", "hf.py", "peft.py", "stored.py", "hf_folder.py") or not literals & spelt, path


@pytest.mark.parametrize("folder", ["ecg", "corpora", "prepare", "report", "export"])
def test_preparing_folders_do_not_import_jax(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] in ("jax", "flax", "optax")}, path


def test_what_a_worker_of_preparation_imports_brings_no_jax():
    code = "import sys, ecgbyte_jax.prepare.write_texts, ecgbyte_jax.prepare.sampling; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_preparation_waits_for_no_import_that_it_does_not_use():
    slow = "jax", "transformers", "torch", "pandas"
    modules = "ecgbyte_jax.stages.pipeline, ecgbyte_jax.stages.prepare"
    code = f"import sys, {modules}; sys.exit(not {{*{slow}}}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
