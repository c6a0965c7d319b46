"""Stage `inspect`: shows what `prepare` left: counts, lengths, questions and answers by type, and one prompt.

It changes nothing.
"""

from collections import Counter

import numpy as np
from rich.text import Text

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import Prepared, load_prepared
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.inputs.shards import Sequence, verify
from ecgbyte_jax.run.console import banner, console, number_table
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SPLITS, Settings
from ecgbyte_jax.stages import lineage

_SEQUENCES = 5_000  # of each split, drawn at random, that lengths and answers are counted on
_QUANTILES = (5, 25, 50, 75, 95, 100)
_SHOWN_ECG_TOKENS = 12
_COMMONEST = 3
_SUPERVISED = "bold green"


def inspect(settings: Settings, workdir: Workdir) -> None:
    """Prints all of it; raises ConfigError where `prepare` has not finished, and ShardsError where a file is damaged."""
    lineage.prepared(settings, workdir).require()
    prepared = load_prepared(workdir)
    verify(prepared.shards, prepared.manifest)
    drawn = {split: _draw(prepared, split, settings.seed) for split in SPLITS if prepared.manifest.splits[split].files}
    limit = settings.prompt.max_length
    lengths = {split: [len(_render(prepared, s, limit)[0]) for s in sequences] for split, sequences in drawn.items()}
    _show_counts(prepared, lengths)
    _show_clipped(workdir)
    _show_answers([sequence for sequences in drawn.values() for sequence in sequences])
    sequences = next(iter(drawn.values()))
    _show_prompt(prepared, max(sequences, key=lambda sequence: len(sequence.history)), limit)  # the first of the longest


def _draw(prepared: Prepared, split: str, seed: int) -> list[Sequence]:
    dataset = open_split(prepared.shards, prepared.manifest, split)
    places = np.random.default_rng(seed).choice(len(dataset), min(_SEQUENCES, len(dataset)), replace=False)
    return [dataset[int(place)] for place in np.sort(places)]


def _render(prepared: Prepared, sequence: Sequence, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    return render(prepared.ids, sequence.text, sequence.ecgs, max_length)


def _show_counts(prepared: Prepared, lengths: dict[str, list[int]]) -> None:
    rows = {}
    for split, tokens in lengths.items():
        summary = prepared.manifest.splits[split]
        counts = {"examples": summary.examples, "sequences": summary.sequences, "ECG cut": summary.ecg_cut}
        rows[split] = counts | {f"{q}%": int(np.percentile(tokens, q)) for q in _QUANTILES}
    number_table("examples, and tokens of a sequence (quantiles)", "split", rows, ",d")


def _show_clipped(workdir: Workdir) -> None:
    tokenizer = ECGTokenizer.load(workdir.ecg_tokenizer)
    low, high = tokenizer.quantizer.low, tokenizer.quantizer.high
    rows: dict[str, object] = {"range": f"{low:.2f} to {high:.2f} mV"}
    if tokenizer.training:
        share = tokenizer.training.clipped / tokenizer.training.symbols
        rows["samples clipped"] = f"{tokenizer.training.clipped} of {tokenizer.training.symbols} trained on ({share:.2%})"
    aside = sum(1 for _ in workdir.quarantine.open(encoding="utf-8"))
    banner("signal", rows | {"examples set aside": f"{aside} ({workdir.quarantine})"})


def _show_answers(sequences: list[Sequence]) -> None:
    """The types of questions with their commonest answers; without types all questions are one."""
    by_type: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        if sequence.segment == 0:
            by_type.setdefault(str(sequence.meta.get("question_type", "all questions")), []).append(sequence)
    for name, of_type in sorted(by_type.items()):
        answers = Counter(sequence.answer for sequence in of_type)
        rows: dict[str, object] = {"examples drawn": len(of_type), "different questions": len({s.question for s in of_type})}
        rows["different answers"] = len(answers)
        commonest = sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:_COMMONEST]
        banner(name, rows | {f"  {count / len(of_type):6.1%}": answer[:100] for answer, count in commonest})


def _show_prompt(prepared: Prepared, sequence: Sequence, max_length: int) -> None:
    """Tokens as the model gets them, with those that the loss is taken over in colour; most of the ECG's are left out."""
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


def _spell(prepared: Prepared, id: int) -> str:
    text = prepared.text_tokenizer.decode([id])
    return f"{text} " if text.startswith(("signal_", "<")) else text
