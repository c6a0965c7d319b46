import json
import os
import shutil

import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.run import pipeline
from ecgbyte_jax.run.stages import Stage, fingerprint, keep_settings
from tests.run.conftest import small_config


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
    with pytest.raises(ConfigError, match=r"run otherwise \(oven\.heat: 200 -> 180\)"):
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


def test_fingerprint_sees_size_time_and_absence(tmp_path):
    file = tmp_path / "a"
    seen = {fingerprint([file], tmp_path)}
    for text, time in (("x", 1), ("y", 2), ("yy", 2)):
        file.write_text(text)
        os.utime(file, (time, time))
        seen.add(fingerprint([file], tmp_path))
    assert len(seen) == 4


def test_a_stage_that_does_nothing_leaves_the_settings_of_what_lies_here(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "w")
    before = (tmp_path / "w/config.json").read_bytes()
    assert json.loads(before)["data"]["max_segments"] == 1 and "train" not in json.loads(before)
    other = small_config()
    other.train.epochs, other.data.sequences_per_file = 99.0, 7  # nothing was made with these
    pipeline.run(other, tmp_path / "w", ["prepare"])
    assert (tmp_path / "w/config.json").read_bytes() == before


def test_a_stage_that_worked_writes_its_own_settings_and_leaves_the_others(tmp_path):
    config = small_config()
    keep_settings(config, tmp_path, "train")
    config.train.epochs, config.eval.split = 99.0, "valid"
    keep_settings(config, tmp_path, "eval")
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["train"]["epochs"] == 0.5 and found["eval"]["split"] == "valid" and "export" not in found


def test_outputs_behind_a_link_are_moved_aside_beside_it_and_the_link_stays(tmp_path):
    workdir, disk = tmp_path / "w", tmp_path / "disk"
    for folder in (workdir, disk / "bread"):
        folder.mkdir(parents=True)
    (workdir / "bread").symlink_to(disk / "bread")
    (workdir / "log").write_text("log")
    now = Stage("bake", workdir / "bread/stage.json", {}, "in")
    now.move_aside(workdir, "bread", "log")  # nothing is there yet
    assert (workdir / "log").exists()
    now.finish([])
    now.move_aside(workdir, "bread", "log")
    assert (workdir / "bread").resolve() == disk / "bread" and not any((disk / "bread").iterdir())
    assert {path.name for path in (disk / "bread.old-1").iterdir()} == {"stage.json", "log"}
    assert (workdir / "bread.old-1").resolve() == disk / "bread.old-1"


def test_a_link_whose_end_is_gone_is_named(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "purged")
    with pytest.raises(ConfigError, match=r"checkpoints': a link to '.*purged', which is gone"):
        pipeline.run(small_config(), tmp_path, ["train"])
