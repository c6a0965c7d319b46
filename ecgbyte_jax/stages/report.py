"""Stage `report`: one HTML page from what the other stages left, with the attention of its examples.

Only the evaluation must be there; the page names what else is missing. Axes: T samples of a segment, n tokens of one.
"""

import shlex
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import grain
import jax
import numpy as np
from flax import nnx

import ecgbyte_jax
from ecgbyte_jax.asking.worth import check_evaluated
from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.read import describe
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, EcgByteError, ReportError
from ecgbyte_jax.evaluate.questions import find_sequences
from ecgbyte_jax.explain.explain import rate_of, views
from ecgbyte_jax.explain.views import EcgView, View
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.shards import read_ecg, read_manifest
from ecgbyte_jax.model.build import count
from ecgbyte_jax.model.quantized.kernel import Quantized
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.corpus import Folders, read_examples
from ecgbyte_jax.report import sections
from ecgbyte_jax.report.folder import Chosen, choose_examples, read_evaluation
from ecgbyte_jax.report.page import Page, render
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.stage import outputs_digest, settings_of
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.attend import open_attended
from ecgbyte_jax.train.checkpoint import Checkpoints
from ecgbyte_jax.train.restore import Trained

_SEGMENTS = 2_000  # drawn at random, on which token statistics are computed


def report(settings: Settings, workdir: Workdir) -> None:
    """Writes the page where there is none for these very files; raises ReportError where there is no evaluation."""
    results, rows = read_evaluation(workdir.results, workdir.generations)
    stage = lineage.reported(settings, workdir, _inputs(workdir), jax.process_count())
    if stage.finished():
        console.print("report: settings and inputs have not changed, nothing to do")
    else:
        stage.begin()
        page, attended = _make_page(settings, workdir, results, rows)
        write_whole(workdir.report, [render(page)])
        if attended:  # else the same command tries again
            stage.finish([workdir.report])
    console.print(f"report                   {workdir.report}")


def _inputs(workdir: Workdir) -> tuple[Path, ...]:
    return (
        workdir.results,
        workdir.generations,
        workdir.answers_marker,
        workdir.metrics,
        workdir.train_marker,
        workdir.prepare_marker,
        workdir.manifest,
        workdir.ecg_tokenizer,
        workdir.quarantine,
    )


def _make_page(settings: Settings, workdir: Workdir, results: dict, rows: list[dict]) -> tuple[Page, bool]:
    """The page, and whether its examples have their attention."""
    name = workdir.root.resolve().name
    named = f" --config.eval.name={workdir.evaluation_name}" if workdir.evaluation_name else ""
    command = f"python main.py --run={shlex.quote(str(workdir.root))}{named} --stage=report"
    config, saved, unknown = _trained_with(workdir, results)
    trained = _restore(settings, workdir, results)
    title = f"{name}, evaluation {workdir.evaluation_name}" if named else name
    reads = config.get("ecg_input", asdict(settings.ecg_input))["kind"]
    page = sections.make_page(title, results, _named(_data_of(workdir, results) or config.get("data", {})), reads)
    parameters = count(nnx.state(trained.model, (nnx.Param, nnx.LoRAParam, Quantized))) if isinstance(trained, Trained) else 0
    sections.add_origin(page, config, parameters, saved, ecgbyte_jax.__version__, command)
    sections.add_settings(page, config, settings_of(workdir.answers_marker).get("eval", {}), unknown)
    attended = _add_examples(page, settings, workdir, results, choose_examples(rows, settings.seed), trained)
    sections.add_curves(page, workdir.metrics)
    sections.add_data(page, workdir.manifest, workdir.quarantine)
    _add_tokenizer(page, settings, workdir)
    _add_origins(page, workdir, results)
    return page, attended


def _data_of(workdir: Workdir, results: dict) -> dict:
    """The settings of the data that the answers are about; {} where what is prepared here is not that."""
    if results.get("prepared") != outputs_digest(workdir.prepare_marker):
        return {}
    return settings_of(workdir.prepare_marker).get("data", {})


def _named(data: dict) -> dict:
    """The settings of data with what is known of their corpus."""
    return data and data | describe(data)._asdict()


def _add_origins(page: Page, workdir: Workdir, results: dict) -> None:
    """Says which parts of the page are not of the training and the data that the answers are of."""
    try:
        check_evaluated(workdir, results)
    except ConfigError as error:
        page.score_notes.append(str(error))
        page.curve_notes.append(str(error))
    data = outputs_digest(workdir.prepare_marker)
    if data and data != results.get("prepared"):
        note = f"{workdir.shards}: not the data that the answers are about; run --stage=eval again"
        page.data_notes.append(note)
        page.tokenizer_notes.append(note)


def _trained_with(workdir: Workdir, results: dict) -> tuple[dict, str, str]:
    """The settings that the evaluated checkpoint records, the day on which it was saved, and why both are unknown, if so."""
    try:
        check_evaluated(workdir, results)
        step = results["checkpoint_step"]
        if step is None:
            raise ReportError(f"the answers are those of the folder '{results['checkpoint']}'")
        with closing(Checkpoints(workdir.checkpoints, keep=None)) as checkpoints:
            return checkpoints.about(step)["config"], checkpoints.saved_on(step), ""
    except EcgByteError as error:
        return {}, "", str(error)


def _restore(settings: Settings, workdir: Workdir, results: dict) -> Trained | EcgByteError:
    """The model that gave the answers, or why there is none."""
    try:
        if jax.process_count() > 1:
            raise ConfigError("several processes share the model; --stage=report on one process adds the attention")
        return open_attended(settings, workdir, results)
    except EcgByteError as error:
        return error


def _add_examples(
    page: Page, settings: Settings, workdir: Workdir, results: dict, examples: list[Chosen], trained: Trained | EcgByteError
) -> bool:
    """With attention where the model is there, without it where only the shards are, else without pictures.

    Returns whether there is attention.
    """
    rows = [chosen.row for chosen in examples]
    example_views: list[View | None] = [None] * len(rows)
    quantizer, attended = None, False
    try:
        if isinstance(trained, EcgByteError):
            raise trained
        example_views = [view for _, view in views(trained, settings.attend, workdir, str(results.get("split")), rows)]
        # Signals that became vectors were not cut at the ends of the tokenizer's range.
        quantizer, attended = None if trained.ids.vectors else trained.ecg_tokenizer.quantizer, True
        page.examples_note = "Attention can be switched off at each ECG."
    except EcgByteError as error:
        page.examples_note = f"Without attention: {error}"
        try:
            example_views = list(_plain_views(workdir, results, rows))
            quantizer = ECGTokenizer.load(workdir.ecg_tokenizer).quantizer
        except EcgByteError as another:
            page.examples_note = f"Without pictures: {another}"
    rate = rate_of(settings)
    originals = _originals(settings, workdir, rows, example_views, quantizer)
    page.examples = [
        sections.make_example(chosen, view, rate, quantizer, signals)
        for chosen, view, signals in zip(examples, example_views, originals, strict=True)
    ]
    return attended


def _originals(
    settings: Settings, workdir: Workdir, rows: list[dict], example_views: list[View | None], quantizer: Quantizer | None
) -> list[list[np.ndarray] | None]:
    """Of each row whose ECGs reach an end of the tokenizer's range, the clean signals that became them; else None.

    They are cleaned again, so there is none where a recording has changed, or is no longer there.
    """
    cut = {
        row["id"]
        for row, view in zip(rows, example_views)
        if view and quantizer and any(sections.leads_cut(ecg.signal, quantizer) for ecg in view.ecgs)
    }
    try:
        records = _records_of(settings, workdir, cut)
    except EcgByteError:
        records = {}
    cleaning = Cleaning.of(settings)
    originals: list[list[np.ndarray] | None] = []
    for row, view in zip(rows, example_views):
        try:
            signals = [cleaning.cut(cleaning.whole(record)[0])[row["segment"]] for record in records.get(row["id"], ())]
        except (EcgByteError, IndexError):
            signals = []
        same = (
            view
            and quantizer
            and len(signals) == len(view.ecgs)
            and all(
                np.array_equal(quantizer.encode(signal), quantizer.encode(ecg.signal))
                for signal, ecg in zip(signals, view.ecgs)
            )
        )
        originals.append(signals if same else None)
    return originals


def _records_of(settings: Settings, workdir: Workdir, ids: set[str]) -> dict[str, tuple[SignalSource, ...]]:
    """The recordings of the corpus' examples with these ids; raises CorpusError where the corpus is missing."""
    records: dict[str, tuple[SignalSource, ...]] = {}
    if ids:
        for item in read_examples(settings, workdir):
            if isinstance(item, Example) and item.id in ids:
                records.setdefault(item.id, item.records)
                if len(records) == len(ids):
                    break
    return records


def _plain_views(workdir: Workdir, results: dict, rows: list[dict]) -> Iterable[View]:
    """The ECGs alone; raises ReportError where the shards are not those that the questions came from."""
    if results.get("prepared") != outputs_digest(workdir.prepare_marker):
        raise ReportError(f"{workdir.shards}: not the data that the answers are about; run --stage=eval again")
    tokenizer = ECGTokenizer.load(workdir.ecg_tokenizer)
    sequences = find_sequences(workdir, str(results.get("split")), rows)
    for row in rows:
        signals = [tokenizer.decode(ids).astype(np.float32) for ids in sequences[row["id"], row["segment"]].ecgs]
        ecgs = tuple(EcgView(signal, np.ones(signal.shape, bool), np.empty(0, np.int32), {}, {}) for signal in signals)
        yield View(ecgs, (), {}, {}, 0.0)


def _add_tokenizer(page: Page, settings: Settings, workdir: Workdir) -> None:
    try:
        tokenizer = ECGTokenizer.load(workdir.ecg_tokenizer)
    except EcgByteError as error:
        page.tokenizer_notes.append(str(error))
        return
    sections.add_tokenizer(page, tokenizer)
    try:
        sections.add_token_statistics(page, tokenizer.bpe, _draw_segments(workdir, settings.seed))
    except EcgByteError as error:
        page.tokenizer_notes.append(f"Without statistics of tokens: {error}")
    try:
        sections.add_token_trace(page, tokenizer, *_first_segment(settings, workdir))
    except EcgByteError as error:
        page.tokenizer_notes.append(f"Without tokens over a trace: {error}")


def _draw_segments(workdir: Workdir, seed: int) -> list[np.ndarray]:
    """The compact ids int32 [n] of segments of all splits, drawn at random."""
    manifest = read_manifest(workdir.shards)
    source = grain.sources.ArrayRecordDataSource([str(workdir.shards / file) for file in manifest.ecg])
    if not len(source):
        raise ReportError(f"{workdir.shards}: there is no ECG")
    places = np.sort(np.random.default_rng(seed).choice(len(source), min(_SEGMENTS, len(source)), replace=False))
    return [read_ecg(source[int(place)]) for place in places]


def _first_segment(settings: Settings, workdir: Workdir) -> tuple[str, np.ndarray, float]:
    """(name, clean mV [12, T], rate in Hz) of the corpus' first usable example; raises CorpusError where it is missing."""
    example = next((item for item in read_examples(settings, workdir) if isinstance(item, Example)), None)
    if example is None:
        raise ReportError(f"{Folders.of(settings, workdir).root}: no usable example found")
    signal, rate = Cleaning.of(settings).whole(example.records[0])
    return example.records[0].name, signal[:, : settings.signal.segment_length], rate
