"""The package as `pip install` gives it: in an environment of its own, used from another folder."""

import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from ecgbyte_jax import __version__
from tests.test_main import SMALL

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the sdist as an index would have it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=120)
    assert len([*folder.glob("*.tar.gz")]) == 1
    return next(folder.glob("*.whl"))


def files(folder: Path) -> set[str]:
    kept = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in kept}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_the_experiments(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ecgbyte_jax/")}
    expected = {f"ecgbyte_jax/{name}" for name in files(ROOT / "ecgbyte_jax")}
    assert inside == expected | {f"ecgbyte_jax/experiments/{name}" for name in files(ROOT / "experiments")}
    assert {"ecgbyte_jax/py.typed", "ecgbyte_jax/report/page.js", "ecgbyte_jax/export/card.md.jinja"} <= inside
    stored = zipfile.Path(wheel, f"ecgbyte_jax-{__version__}.dist-info/")
    assert "MIT License" in (stored / "licenses/LICENSE").read_text()
    assert PathDistribution(stored).version == __version__


@pytest.mark.slow
def test_an_installed_package_prepares_the_demo_in_another_folder(wheel, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    [site] = environment.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # without the .pth files there: not the checkout

    def run(program: str, *arguments: str) -> str:
        command = [environment / "bin" / program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run("python", "-c", "import ecgbyte_jax; print(ecgbyte_jax.__file__)").strip()).is_relative_to(environment)
    settings = [f"--config.{setting}" for setting in SMALL]
    run("ecgbyte", "--config=ecgbyte:demo", "--stage=prepare", *settings)
    assert (tmp_path / "runs/demo/shards/manifest.json").is_file()
    run("ecgbyte", "init")
    assert "nothing to do" in run("ecgbyte", "--config=experiments/demo.py", "--stage=prepare", *settings)
    assert "ecgbyte --run=DIR" in run("ecgbyte", "--help")
