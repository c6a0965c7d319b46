import pytest

from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.feed import plan_batches
from ecgbyte_jax.train.seen import count_seen
from ecgbyte_jax.train.utilisation import step_flops

MODEL = DecoderConfig(500, 32, 2, 2, 2, 16, 64, 512, 1e4)


@pytest.mark.parametrize(("shown", "packing"), [("own", False), ("own", True), ("shuffled", False), ("none", False)])
def test_what_is_counted_is_what_the_batches_hold(prepared, config, shown, packing):
    config.data.ecg, config.data.packing, config.train.epochs = shown, packing, 1.5
    settings, opened = Settings.of(config), load_prepared(Workdir(prepared))
    plan, batches = plan_batches(settings, opened, "train", settings.train.epochs)
    steps = len(plan) - 1
    seen = count_seen(settings, opened, plan, steps, MODEL, 1000)
    ecg_ids = set(opened.ids.ecg.tolist())
    tokens = {"ecg": 0, "text": 0, "padding": 0}
    for number in range(steps):
        batch = batches[number]
        real = batch["segment_ids"] > 0
        ecg = sum(token in ecg_ids for token in batch["input_ids"][real].tolist())
        tokens["ecg"] += ecg
        tokens["text"] += int(real.sum()) - ecg
        tokens["padding"] += int((~real).sum())
    assert seen["tokens"] == tokens
    assert seen["sequences"] == sum(len(plan.lengths(number)) for number in range(steps))
    assert seen["unique_sequences"] <= opened.manifest.splits["train"].sequences < seen["sequences"]
    assert (seen["ecgs"] == 0) == (shown == "none") and seen["ecgs"] <= seen["unique_sequences"]
    assert 0 < seen["patients"] <= 40
    assert seen["flops"] == sum(step_flops(MODEL, 1000, plan.lengths(number)) for number in range(steps))
