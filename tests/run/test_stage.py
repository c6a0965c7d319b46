import json
import os
import shutil

import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.run import stage as stages
from ecgbyte_jax.run.stage import Stage, content_digest, repair
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import pipeline
from ecgbyte_jax.stages.lineage import keep_settings
from tests.small import small_config


def stage(tmp_path, settings=None, inputs="in") -> Stage:
    return Stage("bake", tmp_path / "stage.json", settings or {"oven": {"heat": 200}}, inputs)


def test_only_a_finished_stage_of_the_same_settings_and_inputs_is_kept(tmp_path):
    now = stage(tmp_path)
    assert not now.begun() and not now.finished()
    now.begin()
    assert now.begun() and not now.finished()
    now.finish([])
    assert now.finished()
    assert not stage(tmp_path, inputs="other").finished()
    assert not stage(tmp_path, {"oven": {"heat": 180}}).begun()


def test_a_changed_setting_is_named_with_both_values(tmp_path):
    stage(tmp_path).finish([])
    assert stage(tmp_path, {"oven": {"heat": 180}}).changes() == "oven.heat: 200 -> 180"
    assert stage(tmp_path, inputs="other").changes() == "its inputs are not the same"
    assert stage(tmp_path).changes() == ""


def test_a_marker_cut_short_is_no_marker(tmp_path):
    now = stage(tmp_path)
    now.finish([])
    now.marker.write_text(now.marker.read_text()[:-10])
    assert not now.begun()


def test_a_later_stage_requires_the_earlier_one_whole_and_unchanged(tmp_path):
    now = stage(tmp_path)
    with pytest.raises(ConfigError, match="'bake' has not finished"):
        now.require()
    now.begin()
    with pytest.raises(ConfigError, match="'bake' has not finished"):
        now.require()
    now.finish([])
    assert now.require() == Stage.on_disk("bake", now.marker, now.settings).require()
    with pytest.raises(ConfigError, match=r"with other settings \(oven\.heat: 200 -> 180\)"):
        Stage.on_disk("bake", now.marker, {"oven": {"heat": 180}}).require()
    with pytest.raises(ConfigError, match="its inputs are not the same"):
        stage(tmp_path, inputs="other").require()


def test_a_stage_whose_outputs_are_gone_or_cut_has_not_finished(tmp_path):
    now, folder, file = stage(tmp_path), tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("whole")
    now.finish([folder, file])
    assert now.finished()
    file.write_text("who")
    assert not now.finished()
    file.write_text("whole")
    folder.rmdir()
    assert not now.finished() and now.begun()


def test_another_result_of_the_same_settings_is_told_apart(tmp_path):
    now = stage(tmp_path)
    digests = []
    for result in (1.0, 1.0, 1.5):
        now.finish([], result)
        digests.append(now.require())
    assert digests[0] == digests[1] != digests[2]


def test_content_counts_and_neither_time_nor_folder(tmp_path):
    digests = set()
    for folder, text, time in (("a", "x", 1), ("b", "x", 2), ("a", "y", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "file").write_text(text)
        os.utime(tmp_path / folder / "file", (time, time))
        digests.add(content_digest([tmp_path / folder / "file"]))
    assert len(digests) == 2


@pytest.mark.parametrize("killed", ["move", "rename"])
def test_what_a_killed_move_left_comes_back_whole(tmp_path, monkeypatch, killed):
    folder, log = tmp_path / "bread", tmp_path / "log"
    for heat in (200, 180):
        now = Stage("bake", folder / "stage.json", {"heat": heat}, "in")
        now.move_aside(folder, log)
        folder.mkdir()
        log.write_text(str(heat))
        now.finish([])
    first = Stage("bake", folder / "stage.json", {"heat": 200}, "in")
    with monkeypatch.context() as patch:
        patch.setattr(
            *{"move": (shutil, "move"), "rename": (os, "rename")}[killed], lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            first.take_back(folder, log)
    first.take_back(folder, log)
    assert first.finished() and log.read_text() == "200"
    second = Stage("bake", folder / "stage.json", {"heat": 180}, "in")
    second.take_back(folder, log)
    assert second.finished() and log.read_text() == "180"


def test_what_was_moved_aside_comes_back_with_the_settings_that_made_it(tmp_path):
    folder, log = tmp_path / "bread", tmp_path / "log"
    for heat in (200, 180, 200):
        now = Stage("bake", folder / "stage.json", {"heat": heat}, "in")
        now.take_back(folder, log)
        if not now.begun():
            now.move_aside(folder, log)
            folder.mkdir()
            log.write_text(str(heat))
            now.finish([])
        assert now.finished() and log.read_text() == str(heat)
    assert {path.name for path in tmp_path.iterdir()} == {"bread", "log", "bread.old-2"} or {
        path.name for path in tmp_path.iterdir()
    } == {"bread", "log", "bread.old-1"}


def bake(folder, heat: int) -> Stage:
    """Runs a stage as its owner does."""
    now = Stage("bake", folder / "stage.json", {"heat": heat}, "in")
    now.take_back(folder)
    if not now.begun():
        now.move_aside(folder)
        folder.mkdir(exist_ok=True)
        (folder / "bread").write_text(str(heat))
        now.finish([folder / "bread"])
    assert now.finished() and (folder / "bread").read_text() == str(heat)
    return now


def test_a_stage_in_a_subfolder_stays_where_it_is_when_the_outer_one_changes(tmp_path):
    outer, inner = tmp_path / "bread", tmp_path / "bread/rye"
    bake(outer, 200)
    named = bake(inner, 150)
    bake(outer, 180)
    assert named.finished()
    bake(outer, 200)
    assert named.finished() and {path.name for path in inner.iterdir()} == {"bread", "stage.json"}
    bake(inner, 160)
    bake(inner, 150)
    assert {path.name for path in outer.iterdir()} == {"bread", "stage.json", "rye", "rye.old-2"}


def test_a_stage_in_a_subfolder_comes_back_after_a_kill(tmp_path, monkeypatch):
    outer, inner = tmp_path / "bread", tmp_path / "bread/rye"
    bake(outer, 200)
    named = bake(inner, 150)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_put_back", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Stage("bake", outer / "stage.json", {"heat": 180}, "in").move_aside(outer)
    assert not named.finished()
    repair(outer, "stage.json")
    assert named.finished()
    bake(outer, 180)
    assert named.finished()


def test_a_stage_in_a_subfolder_is_not_replaced_by_an_older_one_that_a_kill_left(tmp_path):
    outer, inner = tmp_path / "bread", tmp_path / "bread/rye"
    bake(outer, 200)
    bake(inner, 150)
    os.rename(outer, tmp_path / "bread.old-1")  # killed here, and the next command does not repair
    outer.mkdir()
    newer = bake(inner, 160)
    bake(outer, 180)
    bake(outer, 200)
    assert newer.finished() and (inner / "bread").read_text() == "160"
    bake(outer, 180)
    assert newer.finished() and (inner / "bread").read_text() == "160"


def test_a_users_own_copy_or_file_beside_a_stage_is_left_alone(tmp_path):
    outer = tmp_path / "bread"
    bake(outer, 200)
    bake(outer / "rye", 150)
    (tmp_path / "bread.old-backup").mkdir()
    shutil.move(outer / "rye", tmp_path / "bread.old-backup/rye")
    (tmp_path / "bread.old-notes").write_text("mine")
    (tmp_path / "bread.old-3").symlink_to(tmp_path / "gone")
    repair(outer, "stage.json")
    shutil.copy(outer / "stage.json", tmp_path / "bread.old-backup")
    bake(outer, 180)
    bake(outer, 160)
    assert (tmp_path / "bread.old-backup/rye").is_dir() and not (outer / "rye").exists()


def test_a_stage_in_a_subfolder_alone_is_not_moved(tmp_path):
    (tmp_path / "bread").mkdir()
    named = bake(tmp_path / "bread/rye", 150)
    bake(tmp_path / "bread", 200)
    assert named.finished() and not list(tmp_path.glob("bread.old-*"))


def test_a_stage_that_does_nothing_leaves_the_settings_of_what_lies_here(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "w")
    before = (tmp_path / "w/config.json").read_bytes()
    assert json.loads(before)["data"]["max_segments"] == 1 and json.loads(before)["train"]["epochs"] == 0.5
    other = small_config()
    other.train.epochs, other.data.max_bad_fraction = 99.0, 0.9  # nothing was made with these
    pipeline.run(other, tmp_path / "w", ["prepare"])
    assert (tmp_path / "w/config.json").read_bytes() == before


def test_a_stage_that_worked_writes_its_own_settings_and_leaves_the_others_once_they_are_there(tmp_path):
    config = small_config()
    keep_settings(Settings.of(config), Workdir(tmp_path), "train")
    config.train.epochs, config.eval.split = 99.0, "valid"
    keep_settings(Settings.of(config), Workdir(tmp_path), "eval")
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["train"]["epochs"] == 0.5 and found["eval"]["split"] == "valid" and found["export"]["checkpoint"] == "last"


def test_outputs_behind_a_link_are_moved_aside_beside_it_and_the_link_stays(tmp_path):
    workdir, disk = tmp_path / "w", tmp_path / "disk"
    for folder in (workdir, disk / "bread"):
        folder.mkdir(parents=True)
    (workdir / "bread").symlink_to(disk / "bread")
    (workdir / "log").write_text("log")
    now = Stage("bake", workdir / "bread/stage.json", {}, "in")
    now.move_aside(workdir / "bread", workdir / "log")  # nothing is there yet
    assert (workdir / "log").exists()
    now.finish([])
    now.move_aside(workdir / "bread", workdir / "log")
    assert (workdir / "bread").resolve() == disk / "bread" and not any((disk / "bread").iterdir())
    assert {path.name for path in (disk / "bread.old-1").iterdir()} == {"stage.json", "log"}
    assert (workdir / "bread.old-1").resolve() == disk / "bread.old-1"


def test_a_link_whose_end_is_gone_is_named(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "purged")
    with pytest.raises(ConfigError, match=r"checkpoints': a link to '.*purged', which is not there"):
        pipeline.run(small_config(), tmp_path, ["train"])
