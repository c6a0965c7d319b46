"""Stage `fit`: compiling for hardware that is not here."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pytest
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.fit import fit as stage
from ecgbyte_jax.fit.bounds import encoder_bound, step_bound, token_bound
from ecgbyte_jax.fit.collectives import Collectives, count_collectives
from ecgbyte_jax.fit.fit import fit
from ecgbyte_jax.fit.topology import chip_and_count, devices_of, environment
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.chips import CHIPS
from ecgbyte_jax.train.utilisation import step_flops

TEXT = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %gathered = bf16[8,4]{1,0} all-gather(%part), dimensions={0}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %gathered)
}

%limit (p: (s32[], bf16[8,4])) -> pred[] {
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

%known (p: (s32[])) -> (s32[]) {
  %moved = (f32[2]{0}, f32[2]{0}) collective-permute-start(%x)
  %there = f32[2]{0} collective-permute-done(%moved)
}

%never (p: s32[]) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %loop = (s32[], bf16[8,4]) while(%start), condition=%limit, body=%body
  %other = (s32[]) while(%s), condition=%never, body=%known, backend_config={"known_trip_count":{"n":"5"}}
  %started = ((f32[2]{0}, f32[3]{0}), (f32[16]{0}, f32[24]{0})) all-gather-start(%x, %y), dimensions={0}
  %done = (f32[16]{0}, f32[24]{0}) all-gather-done(%started)
  ROOT %reduced = f32[16]{0} all-reduce(%done), to_apply=%add
}
"""
CONFIG = DecoderConfig(
    vocab_size=100, width=8, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_width=16, max_positions=64, rope_theta=1e4,
    dtype="bfloat16", param_dtype="bfloat16",
)  # fmt: skip
FOUND = {
    "parameters": {"trained": 100, "frozen": 900}, "devices": 4, "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
    "remat": "products", "all weights": 2000, "decoder": {"trained": 100, "frozen": 900, "bytes": 2000},
    "step": {"temporaries": 5000, "collectives": {"all-gather": {"places": 1, "times": 2, "bytes": 3000}}},
}  # fmt: skip


def test_collectives_in_loops_count_for_every_round():
    assert count_collectives(TEXT) == {
        "all-gather": Collectives(2, 4, 3 * 64 + 64 + 96),
        "all-reduce": Collectives(1, 1, 64),
        "collective-permute": Collectives(1, 5, 5 * 8),
    }


def test_bounds_by_hand():
    chip = CHIPS["h100"]
    step = step_bound(CONFIG, FOUND, chip, np.array([[10, 2]] * 4), 8)
    assert step.arithmetic == pytest.approx(step_flops(CONFIG, 100, np.array([[10, 2]] * 8)) / 4 / chip.flops)
    assert step.memory == pytest.approx((2 * 2000 + 2 * 5000) / chip.bandwidth)
    assert step.communication == pytest.approx(3000 / chip.link)
    assert step.seconds == max(step.arithmetic, step.memory, step.communication)
    token = token_bound(CONFIG, FOUND, chip, 8, 10)
    cache = 2 * 10 * 2 * 2 * 1 * 4 * 2  # two rows of four devices
    assert token.memory == pytest.approx((1000 * 2 + cache) / chip.bandwidth)
    assert token.arithmetic == pytest.approx(2 * 2 * 1000 / chip.flops)
    # An encoder of 500 more parameters works once for an ECG, and not for every token.
    both = FOUND | {"parameters": {"trained": 600, "frozen": 900}, "all weights": 4000}
    bound = step_bound(CONFIG, both, chip, np.array([[10, 2]] * 4), 8, 1e6)
    assert bound.arithmetic == pytest.approx(step.arithmetic + 8e6 / 4 / chip.flops)
    assert bound.memory == pytest.approx(step.memory + 2000 / chip.bandwidth)
    assert token_bound(CONFIG, both, chip, 8, 10) == token


def test_the_bound_of_a_first_stage_by_hand():
    bound = encoder_bound(8e15, FOUND, CHIPS["h100"])
    assert bound.arithmetic == pytest.approx(2e15 / 989e12) and bound.seconds == bound.arithmetic
    assert bound.memory == pytest.approx((2 * 2000 + 2 * 5000) / 3352e9) and bound.communication == pytest.approx(3000 / 450e9)


def two_stages(config) -> ConfigDict:
    config.ecg_input.kind, config.encoder.kind, config.encoder.size = "encoder", "mlae", "tiny"
    config.pretrain.batch_size, config.pretrain.epochs = 16, 3.0
    return config


@pytest.mark.parametrize(("pretrained", "stages"), [("", 2), ("random", 1), ("elsewhere", 1)])
def test_the_first_stage_is_compiled_where_the_run_has_one(config, prepared, tmp_path, monkeypatch, capsys, pretrained, stages):
    two_stages(config).encoder.pretrained = pretrained
    part = {"seconds": 1.0, "arguments": 1, "temporaries": 1, "collectives": {}}
    found = {
        "device": "d", "devices": 2, "mesh": {"data": 2}, "memory": 100e9, "rows": 16, "rows a device": 8, "remat": "",
        "attention": "", "parameters": {"trained": 5, "frozen": 0},
    }  # fmt: skip
    bounds = {"step": {"seconds": 1.0, "arithmetic": 1.0, "memory": 1.0, "communication": 0.0}, "examples_per_s": 0.5}
    bounds |= {"token": {"seconds": 1.0}, "tokens_per_s": 1.0}
    requests = []

    def measure(request):
        requests.append(request.first_stage)
        return found | {"step": part | {"peak": 99e9 if request.first_stage else 1e9}, "bounds": dict(bounds)}

    monkeypatch.setattr(stage, "_measure", measure)
    workdir = Workdir(tmp_path)
    for folder in (Workdir(prepared).shards, Workdir(prepared).tokenizers):
        shutil.copytree(folder, tmp_path / folder.name)
    message = r"fit: the first stage's step does not fit: 99\.0 GB .* fewer segments \(pretrain\.batch_size\)"
    with pytest.raises(ConfigError, match=message) if stages == 2 else nullcontext():
        fit(Settings.of(config), workdir)
    report = json.loads(workdir.fit.read_text())
    assert requests == [False, True][:stages] and ("pretrain" in report) == (stages == 2)
    assert ("fit: the first stage" in capsys.readouterr().out) == (stages == 2)
    if stages == 2:
        assert report["pretrain"]["bounds"]["hours"] == pytest.approx(32 * 3 / 0.5 / 3600)


def test_a_topology_is_a_chip_and_a_number_of_devices():
    assert chip_and_count("a100-40-1") == ("a100-40", 1) and chip_and_count("v5p-64") == ("v5p", 64)
    assert environment("v5e-8")["JAX_PLATFORMS"] == "cpu" and environment("here") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [("v9-8", "of these chips expected"), ("h100", "of these chips"), ("h100-0", "of these"), ("v5e-7", "slices of 1, 4, 8")],
)
def test_an_unknown_topology_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        chip_and_count(name)


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("ecgbyte_jax.fit.topology.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="extra `tpu`"):
        devices_of("v5e-8")
    with pytest.raises(ConfigError, match="extra `cuda`"):
        devices_of("h100-1")


def test_a_crash_of_the_compiler_is_one_line(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match=r"the compiler for here failed \(exit code 1\)"):
        fit(Settings.of(config), Workdir(tmp_path))


@pytest.mark.parametrize(("jump", "most"), [(0, 12), (40, 7), (-40, 18)], ids=["line", "above it", "below it"])
def test_most_rows_are_found_in_few_compilations(monkeypatch, jump, most):
    tried = []

    def measure(request):
        tried.append(request.rows)
        return {"memory": 100.0, "step": {"peak": 5 + 7 * request.rows + (jump if request.rows > 7 else 0)}}

    monkeypatch.setattr(stage, "_measure", measure)
    assert stage._most_rows(stage.Request({}, "here", 1, 1, 1, 1, [], remat="inputs")) == most
    assert tried[:2] == [1, 2] and len(tried) <= 10


def test_a_search_that_begins_far_off_ends_soon(monkeypatch):
    tried = []

    def measure(request):
        tried.append(request.rows)
        peak = 10 + 0.01 * request.rows if request.rows < 3 else 5 * request.rows
        return {"memory": 100.0, "step": {"peak": peak}}

    monkeypatch.setattr(stage, "_measure", measure)
    assert stage._most_rows(stage.Request({}, "here", 1, 1, 1, 1, [], remat="inputs")) in (18, 19)
    assert len(tried) < 20


def test_what_does_not_fit_says_by_how_much():
    found = {"memory": 100e9, "step": {"peak": 120e9}}
    assert "120.0 GB a device found, 95.0 GB usable, 25.0 GB too much" in stage._problem(found)
    assert stage._problem({"memory": 100e9, "step": {"peak": 90e9}}) == ""
    assert "exceeds available HBM" in stage._problem({"memory": 1.0, "step": {"refused": "exceeds available HBM"}})


@pytest.mark.slow
def test_fit_here_writes_what_the_programs_need(config, tmp_path):
    config.fit.tokens = 10_000
    fit(Settings.of(config), Workdir(tmp_path))
    report = json.loads((tmp_path / "fit.json").read_text())
    assert report["topology"] == "here" and report["remat"] == "" and report["attention"] == ""
    assert report["step"]["temporaries"] > 0 and report["generation"]["peak"] > 0 and "pretrain" not in report


@pytest.mark.slow
def test_the_step_of_a_first_stage_is_the_one_that_is_trained(config):
    two_stages(config).encoder.kind = "merl"
    found = stage._measure(stage.Request(asdict(Settings.of(config)), "here", 1, 1, 1, 10, [], first_stage=True, rows=2))
    assert found["rows"] == 2 * found["devices"] and found["rows a device"] == 2
    assert found["weights"] == 4 * sum(found["parameters"].values()) == found["all weights"]
    # The parameters, Adam's moments and counters, statistics, and two segments with the features of their reports.
    batch = 2 * 4 * (12 * 100 + 768)
    trained, frozen = (4 * found["parameters"][part] for part in ("trained", "frozen"))
    assert 0 <= found["step"]["arguments"] - (3 * trained + frozen + batch) < 100
    if found["devices"] > 1:
        assert found["step"]["collectives"]["all-reduce"]["bytes"] >= trained


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_a_first_stage_is_compiled_for_a_tpu_that_is_not_here(config):
    settings = asdict(Settings.of(two_stages(config)))
    found = stage._measure(stage.Request(settings, "v5e-4", 1, 1, 1, 10, [], first_stage=True))
    assert found["device"] == "TPU v5 lite" and found["rows a device"] == 4 and found["memory"] > 16e9
    assert found["step"]["collectives"] and found["bounds"]["step"]["seconds"] > 0


def on_topology(config, tmp_path, name: str, **mesh) -> dict:
    config.fit.topology, config.model.scan_from, config.model.dtype = name, 1, "bfloat16"
    config.model.head_dim, config.lora.rank, config.train.batch_size = 64, 4, 8
    config.mesh.update(mesh)
    fit(Settings.of(config), Workdir(tmp_path))
    return json.loads((tmp_path / "fit.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_fit_compiles_for_a_tpu_that_is_not_here(config, tmp_path):
    report = on_topology(config, tmp_path, "v5e-4", data=1, fsdp=4)
    assert report["device"] == "TPU v5 lite" and report["devices"] == 4 and report["attention"] == "splash"
    assert report["remat"] == "products" and "hours" not in report["bounds"] and report["bounds"]["step"]["seconds"] > 0
    assert report["step"]["collectives"]["all-reduce"]["times"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="XLA's compiler for NVIDIA GPUs is not installed: pip install -e '.[cuda]' (6 GB)",
)
def test_fit_compiles_for_a_gpu_that_is_not_here(config, tmp_path):
    report = on_topology(config, tmp_path, "h100-2", data=1, fsdp=2)
    assert report["device"].startswith("NVIDIA H100") and report["devices"] == 2 and report["attention"] == "flash"
    assert report["step"]["collectives"]["all-gather"]["times"] > 0


def test_a_search_needs_the_memory_of_the_devices(config, tmp_path, monkeypatch):
    config.fit.search = True
    monkeypatch.setattr(stage, "_measure", lambda request: {"memory": None, "step": {"peak": 1}})
    with pytest.raises(ConfigError, match=r"fit\.search: the memory of these devices is not known"):
        fit(Settings.of(config), Workdir(tmp_path))


def test_programs_answer_a_bad_request_in_one_line():
    request = {"settings": {}, "topology": "v9-1", "vocab_size": 1, "first_new_id": 1, "answer_tokens": 1, "steps": 1}
    request["lengths"] = [[8, 2]]
    done = subprocess.run(
        [sys.executable, "-m", "ecgbyte_jax.fit.programs"], input=json.dumps(request), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "fit.topology" in done.stderr
