"""What a training has seen, and the arithmetic that it took: for the run's ledger (`run/cost.py`)."""

from typing import Any

import numpy as np

from ecgbyte_jax.inputs.batches import outlines_of
from ecgbyte_jax.inputs.controls import shown_places
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.utilisation import step_flops


def count_seen(
    settings: Settings, prepared: Prepared, plan: Plan, steps: int, config: DecoderConfig, trained: int, ecg_flops: float = 0.0
) -> dict[str, Any]:
    """Of the first `steps` steps of a plan: unique ECGs and patients, examples, tokens by kind, FLOPs.

    trained: the number of trained parameters of the decoder. ecgs: segments of recordings; patients: of the questions;
    sequences: those seen, once for each time; tokens: the ECGs' (or vectors), all others, padding; flops: what the model needs,
    see `utilisation.step_flops`; ecg_input_flops: besides, of ECGs that become vectors. ecg_flops: of one of these.
    """
    outlines = outlines_of(prepared.shards, prepared.manifest, "train")
    places = shown_places(outlines, "train", settings.data.ecg, settings.seed)
    times = np.zeros(len(outlines), np.int64)
    room, real, flops = 0, 0, 0.0
    for number in range(steps):
        step, lengths = plan[number], plan.lengths(number)
        np.add.at(times, np.concatenate(step.rows), 1)
        room += len(step.rows) * step.length
        real += int(lengths[:, 0].sum())
        flops += step_flops(config, trained, lengths)
    seen = np.flatnonzero(times)
    text = sum(int(times[number]) * len(outlines[number].text) for number in seen)
    shown = 0 if settings.data.ecg == "none" else sum(int(times[number]) * len(outlines[number].ecgs) for number in seen)
    patients = {patient for number in seen for patient in outlines[number].meta.get("patients", (outlines[number].patient,))}
    return {
        "steps": steps,
        "ecgs": len({place for number in seen for place in places[number]}),
        "patients": len(patients),
        "sequences": int(times.sum()),
        "unique_sequences": len(seen),
        "tokens": {"ecg": real - text, "text": text, "padding": room - real},
        "flops": flops,
        "ecg_input_flops": shown * ecg_flops,
    }
