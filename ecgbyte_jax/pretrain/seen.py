"""What a first stage has seen, and the arithmetic that it took: for the run's ledger (`run/cost.py`)."""

from typing import Any

import numpy as np

from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.shards import Sequence


def count_segments(asked: list[Sequence], numbers: np.ndarray, plan: Plan, steps: int, flops: float) -> dict[str, Any]:
    """Of the first `steps` steps of a plan of segments: unique ECGs and patients, examples, FLOPs.

    asked: the outlines of the sequences about them; numbers: int [n], of the segments in the plan; flops: of a step, see
    `objective.objective_flops`. ecgs: segments of recordings; examples: those seen, once for each time.
    """
    times = np.zeros(len(numbers), np.int64)
    for step in range(steps):
        np.add.at(times, np.concatenate(plan[step].rows), 1)
    seen = set(numbers[times > 0].tolist())
    patients = {
        patient
        for outline in asked
        for number, patient in zip(outline.ecgs, outline.meta.get("patients", [outline.patient] * len(outline.ecgs)))
        if int(number) in seen
    }
    return {"steps": steps, "ecgs": len(seen), "patients": len(patients), "examples": int(times.sum()), "flops": steps * flops}
