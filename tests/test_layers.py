"""Which folder may import which (the table in CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ecgbyte_jax"
ALLOWED = {
    "ecg": {"ecg"},
    "corpora": {"ecg", "corpora"},
    "inputs": {"ecg", "corpora", "inputs"},
    "model": {"model"},
    "report": {"ecg", "report"},
    "run": {"ecg", "corpora", "inputs", "model", "report", "run"},
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


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folder_imports_only_what_it_may(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("ecgbyte_jax.")}
        assert ours - {"errors", "files"} <= ALLOWED[folder], path


def test_every_folder_is_in_the_table():
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("folder", ["ecg", "corpora", "report"])
def test_preparing_folders_do_not_import_jax(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] in ("jax", "flax", "optax")}, path


def test_what_a_worker_of_preparation_imports_brings_no_jax():
    code = "import sys, ecgbyte_jax.run.write_shards, ecgbyte_jax.run.sampling; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_preparation_waits_for_no_import_that_it_does_not_use():
    slow = "jax", "transformers", "torch", "pandas"
    code = f"import sys, ecgbyte_jax.run.pipeline, ecgbyte_jax.run.prepare; sys.exit(not {{*{slow}}}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
