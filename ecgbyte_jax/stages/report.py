"""Stage `report`: one HTML page from what the other stages left, with the attention of its examples.

Only the evaluation must be there; the page names what else is missing. Axes: T samples of a segment, n tokens of one.
"""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import grain
import jax
import numpy as np

from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.read import read_corpus
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, EcgByteError, ReportError
from ecgbyte_jax.evaluate.questions import find_sequences
from ecgbyte_jax.evaluate.results import answered_by
from ecgbyte_jax.explain.explain import rate_of, views
from ecgbyte_jax.explain.views import EcgView, View
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.shards import read_ecg, read_manifest
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.corpus import Folders
from ecgbyte_jax.report import sections
from ecgbyte_jax.report.folder import Chosen, choose_examples, read_evaluation, read_json
from ecgbyte_jax.report.page import Page, render
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.stage import outputs_digest
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.attend import check_evaluated
from ecgbyte_jax.train.checkpoint import Checkpoints
from ecgbyte_jax.train.restore import open_trained

_SEGMENTS = 2_000  # drawn at random, on which token statistics are computed


def report(settings: Settings, workdir: Workdir) -> None:
    """Writes the page where there is none for these very files; raises ReportError where there is no evaluation."""
    if jax.process_index():
        return
    results, rows = read_evaluation(workdir.results, workdir.generations)
    stage = lineage.reported(settings, workdir, _inputs(workdir), jax.process_count())
    if stage.finished():
        console.print("report: settings and inputs have not changed, nothing to do")
    else:
        stage.begin()
        page = _make_page(settings, workdir, results, rows)
        write_whole(workdir.report, [render(page)])
        if not page.examples_note.startswith("Without"):  # else the same command tries again
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


def _make_page(settings: Settings, workdir: Workdir, results: dict, rows: list[dict]) -> Page:
    page = sections.make_page(f"ECG-Byte run {workdir.root.resolve().name}", results)
    _add_settings(page, workdir, results)
    _add_examples(page, settings, workdir, results, choose_examples(rows, settings.seed))
    sections.add_curves(page, workdir.metrics)
    sections.add_data(page, workdir.manifest, workdir.quarantine)
    _add_tokenizer(page, settings, workdir)
    _add_origins(page, workdir, results)
    return page


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


def _add_settings(page: Page, workdir: Workdir, results: dict) -> None:
    """The settings that the evaluated checkpoint records, and those of the evaluation."""
    trained = {}
    try:
        trained = _trained_with(workdir, results)
    except EcgByteError as error:
        page.settings_notes.append(f"Without the settings of the training: {error}")
    evaluated = read_json(workdir.answers_marker) or {}
    sections.add_settings(page, trained, evaluated.get("settings", {}).get("eval", {}))


def _trained_with(workdir: Workdir, results: dict) -> dict:
    check_evaluated(workdir, results)
    if results["checkpoint_step"] is None:
        raise ReportError(f"the answers are those of the folder '{results['checkpoint']}'")
    with closing(Checkpoints(workdir.checkpoints, keep=None)) as checkpoints:
        return checkpoints.about(results["checkpoint_step"])["config"]


def _add_examples(page: Page, settings: Settings, workdir: Workdir, results: dict, examples: list[Chosen]) -> None:
    """With attention where the model can be restored, without it where only the shards are there, else without pictures."""
    rows = [chosen.row for chosen in examples]
    example_views: list[View | None]
    try:
        example_views = list(_attended(settings, workdir, results, rows))
        page.examples_note = (
            "The colour beneath each trace is the mean attention, over layers and heads, with which the answer's tokens were "
            "chosen."
        )
    except EcgByteError as error:
        page.examples_note = f"Without attention: {error}"
        try:
            example_views = list(_plain_views(workdir, results, rows))
        except EcgByteError as another:
            page.examples_note = f"Without pictures: {another}"
            example_views = [None] * len(rows)
    rate = rate_of(settings)
    page.examples = [sections.make_example(*pair, rate) for pair in zip(examples, example_views, strict=True)]


def _attended(settings: Settings, workdir: Workdir, results: dict, rows: list[dict]) -> Iterable[View]:
    if jax.process_count() > 1:
        raise ConfigError("several processes share the model; --stage=report on one process adds the attention")
    check_evaluated(workdir, results)
    lineage.trained(settings, workdir).require()
    trained = open_trained(settings, workdir, answered_by(results))
    for _, view in views(trained, settings.attend, workdir, str(results.get("split")), rows):
        yield view


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
    folders = Folders.of(settings, workdir)
    items = read_corpus(settings.data, folders.root, folders.ecgqa_root)
    example = next((item for item in items if isinstance(item, Example)), None)
    if example is None:
        raise ReportError(f"{folders.root}: no usable example found")
    signal, rate = Cleaning.of(settings).whole(str(example.records[0]))
    return example.records[0].name, signal[:, : settings.signal.segment_length], rate
