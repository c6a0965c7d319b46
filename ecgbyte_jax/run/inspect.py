"""Stage `inspect`: a look at what `prepare` left: counts, lengths, questions and answers by type, and one prompt.

Changes nothing. Axes: n tokens of a sequence.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from ecgbyte_jax.corpora.example import SPLITS
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.inputs.shards import Sequence, verify
from ecgbyte_jax.run import prepare, stages
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.logbook import banner, console, number_table

_SEQUENCES = 5_000  # of each split, drawn at random, that lengths and answers are counted on
_QUANTILES = (5, 25, 50, 75, 95, 100)
_SHOWN_ECG_TOKENS = 12
_COMMONEST = 3
_SUPERVISED = "bold green"


def inspect(config: ConfigDict, workdir: Path) -> None:
    """Prints the look; raises ConfigError where `prepare` has not finished, and ShardsError where a file is damaged."""
    paths = Paths.of(config, workdir)
    stages.Stage.on_disk("prepare", paths.marker, prepare.settings(config)).require()
    prepared = prepare.load_prepared(config, workdir)
    verify(prepared.shards, prepared.manifest)
    some = {split: _draw(prepared, split, config.seed) for split in SPLITS if prepared.manifest.splits[split].files}
    limit = config.prompt.max_length
    lengths = {split: [len(_render(prepared, s, limit)[0]) for s in sequences] for split, sequences in some.items()}
    _show_counts(prepared, lengths)
    _show_clipped(paths)
    _show_answers([sequence for sequences in some.values() for sequence in sequences])
    _show_prompt(prepared, next(iter(some.values()))[0], limit)


def _draw(prepared: prepare.Prepared, split: str, seed: int) -> list[Sequence]:
    dataset = open_split(prepared.shards, prepared.manifest, split)
    drawn = np.random.default_rng(seed).choice(len(dataset), min(_SEQUENCES, len(dataset)), replace=False)
    return [dataset[int(place)] for place in np.sort(drawn)]


def _render(prepared: prepare.Prepared, sequence: Sequence, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    return render(prepared.ids, sequence.ecgs, sequence.question_ids, sequence.answer_ids, max_length)


def _show_counts(prepared: prepare.Prepared, lengths: dict[str, list[int]]) -> None:
    rows = {}
    for split, found in lengths.items():
        summary = prepared.manifest.splits[split]
        counts = {"examples": summary.examples, "sequences": summary.sequences, "ECG cut": summary.ecg_cut}
        rows[split] = counts | {f"{q}%": int(np.percentile(found, q)) for q in _QUANTILES}
    number_table("examples, and tokens of a sequence (quantiles)", "split", rows, ",d")


def _show_clipped(paths: Paths) -> None:
    tokenizer = ECGTokenizer.load(paths.ecg_tokenizer)
    low, high = tokenizer.quantizer.low, tokenizer.quantizer.high
    rows: dict[str, object] = {"range": f"{low:.2f} to {high:.2f} mV"}
    if tokenizer.training:
        share = tokenizer.training.clipped / tokenizer.training.symbols
        rows["samples clipped"] = f"{tokenizer.training.clipped} of {tokenizer.training.symbols} trained on ({share:.2%})"
    aside = sum(1 for _ in paths.quarantine.open(encoding="utf-8"))
    banner("signal", rows | {"examples set aside": f"{aside} ({paths.quarantine})"})


def _show_answers(sequences: list[Sequence]) -> None:
    """Types of questions with their commonest answers; a corpus without types has one."""
    by_type: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        if sequence.segment == 0:
            by_type.setdefault(str(sequence.meta.get("question_type", "all questions")), []).append(sequence)
    for name, found in sorted(by_type.items()):
        answers = Counter(sequence.answer for sequence in found)
        rows: dict[str, object] = {"examples drawn": len(found), "different questions": len({s.question for s in found})}
        rows["different answers"] = len(answers)
        commonest = sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:_COMMONEST]
        banner(name, rows | {f"  {count / len(found):6.1%}": answer[:100] for answer, count in commonest})


def _show_prompt(prepared: prepare.Prepared, sequence: Sequence, max_length: int) -> None:
    """Tokens as the model sees them, those that the loss falls on coloured; most of the ECG's are left out."""
    ids, mask = _render(prepared, sequence, max_length)
    title = (("prompt", "bold"), f" of {sequence.id}: {len(ids)} tokens, ", ("supervised", _SUPERVISED))
    console.print(Text.assemble(*title))
    text, run = Text(), 0
    ecg = set(prepared.ids.ecg.tolist())
    for place, (id, supervised) in enumerate(zip(ids.tolist(), mask.tolist())):
        run = run + 1 if id in ecg else 0
        if run <= _SHOWN_ECG_TOKENS:
            text.append(_spell(prepared, id), style=_SUPERVISED if supervised else "")
        elif place + 1 < len(ids) and int(ids[place + 1]) not in ecg:
            text.append(f"... {run - _SHOWN_ECG_TOKENS} more ")
    console.print(text)


def _spell(prepared: prepare.Prepared, id: int) -> str:
    text = prepared.text_tokenizer.decode([id])
    return f"{text} " if text.startswith(("signal_", "<")) else text
