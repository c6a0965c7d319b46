"""What several tests share. Eight simulated devices stand for a pod; they are asked for before jax starts."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # models this small take longer to compile than to run
# Many tests compile the same small model: once is enough, for xdist's workers and for the processes that tests start too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ecgbyte-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import numpy as np
import pytest
from hypothesis import settings
from ml_collections import ConfigDict

from tests.small import small_config

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real recordings and the published figures; the test is skipped where it is absent."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is absent: no real recordings and published figures to compare with")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def optimised(monkeypatch) -> Iterator[None]:
    """Compiles with all of XLA's optimisations, as users do, here and in processes that are started.

    What is compared to the last digits is rounded in their order, and a real model computes for longer than it compiles.
    """
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    with_few = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", with_few)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """(work directory, what was printed) of a whole small run on one device."""
    from tests.test_main import small_demo

    workdir = tmp_path_factory.mktemp("run") / "w"
    done = small_demo(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture
def config() -> ConfigDict:
    return small_config()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A run's folder in which `prepare` has run on `small_config()`."""
    from ecgbyte_jax.run.workdir import Workdir
    from ecgbyte_jax.settings import Settings
    from ecgbyte_jax.stages.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    prepare(Settings.of(small_config()), Workdir(folder))
    return folder
