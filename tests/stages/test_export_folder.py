"""How a new export takes the place of the one before."""

import pytest

from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.stages.export import _put_in_place


def made(folder, text: str) -> None:
    """An export as the stage leaves it."""
    folder.mkdir()
    (folder / "model").write_text(text)
    Stage("export", folder / "stage.json", {}, text).finish([folder / "model"])


@pytest.fixture
def folders(tmp_path):
    made(tmp_path / "export", "old")
    made(tmp_path / "export.partial", "new")
    return tmp_path


def test_an_export_of_the_stage_s_own_files_is_replaced(folders):
    _put_in_place(folders / "export.partial", folders / "export")
    assert (folders / "export/model").read_text() == "new" and [path.name for path in folders.iterdir()] == ["export"]


def test_modules_that_python_compiled_are_no_user_s_own(folders):
    (folders / "export/ecgbyte_numpy/__pycache__").mkdir(parents=True)
    (folders / "export/ecgbyte_numpy/__pycache__/signal.cpython-311.pyc").write_text("compiled")
    _put_in_place(folders / "export.partial", folders / "export")
    assert (folders / "export/model").read_text() == "new" and [path.name for path in folders.iterdir()] == ["export"]


@pytest.mark.parametrize(("name", "text"), [("README.md", "mine"), ("model", "abc"), ("model", "edited")])
def test_an_export_with_a_user_s_own_files_is_kept_aside(folders, capsys, name, text):
    (folders / "export" / name).write_text(text)
    _put_in_place(folders / "export.partial", folders / "export")
    assert (folders / "export/model").read_text() == "new" and (folders / "export.old-1" / name).read_text() == text
    assert f"{name} is not of the export before; all of that is kept in" in capsys.readouterr().out.replace("\n", "")
