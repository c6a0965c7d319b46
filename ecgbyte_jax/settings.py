"""Every setting of a run, once: type, default, meaning with unit, and rule; published defaults, where there are any.

An experiment is a ConfigDict of the same names (`get_defaults` in `experiments/common.py`), which becomes `Settings` when the
pipeline starts; each library takes the part that it needs. Spans in samples are at `signal.target_rate`.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.ecg.perturb import PERTURBATIONS
from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig, check_vectors
from ecgbyte_jax.errors import ConfigError, SettingsError
from ecgbyte_jax.model.config import LoraConfig, ModelConfig
from ecgbyte_jax.rules import Rule, above, at_least, between, check, one_of, setting, some_of

SPLITS = ("train", "valid", "test")

_BELOW_1 = Rule(lambda share: 0 <= share < 1, "0 or more, below 1")
# Parts that came later, or that a trained model does not depend on.
_LATER = (
    "ecg_input",
    "encoder",
    "pretrain",
    "pretrain_optim",
    "mesh",
    "distributed",
    "fit",
    "export",
    "eval",
    "attend",
    "headline",
    "serve",
)
_WHOLE = Rule(lambda values: all(value >= 0 for value in values), "whole numbers from 0")

# Of the whole run, and not of a corpus in a mixture.
_OF_THE_RUN = (
    "mixture",
    "parts",
    "published_split",
    "folds",
    "fold",
    "seed",
    "synthetic_records",
    "ecg",
    "max_segments",
    "max_bad_fraction",
    "sequences_per_file",
    "questions_together",
    "packing",
    "length_buckets",
)
MIXTURE = "mixture"  # the corpus that is several
_ONE_WORD = Rule(lambda text: bool(re.fullmatch(r"[\w.:-]+", text)), "a name or an address")
_TOKEN = Rule(lambda text: bool(re.fullmatch(r"[!-~]*", text)), "letters, digits and signs of ASCII without spaces")
LOOPBACK = ("127.0.0.1", "::1", "localhost")  # which other machines do not reach

SHOWN = ("own", "shuffled", "zeros", "none")  # see `inputs.controls.open_shown`
SHOWN_AS = {"shuffled": "other patients' ECGs", "zeros": "zeros", "none": "nothing"}  # in place of own ECGs


@dataclass(frozen=True)
class DataSettings:
    """Which examples a run is about, and how they are batched."""

    corpus: str = setting(
        "ptbxl",
        '"ptbxl", "mimic": reports; "ecg_qa", "ecg_qa_mimic", "ecg_qa_cot": ECG-QA; "ptbxl_labels", "cpsc", "csn", "code15": '
        'labels; "ecg_chat", "ecg_instruct", "ecg_grounding": conversations; "ecg_bench", "ecg_reasoning": tests; "own": your '
        'table; "measured": answers measured in the recordings of data.measured_of; "mixture": those of '
        "data.mixture",
    )
    # Sequences are drawn without replacement, so that a corpus is seen whole before any of it is seen again. An epoch has as
    # many as all corpora together: a small one with a large weight is repeated in it, of a large one with a small weight the
    # next epoch shows more. Validation and evaluation see all of each corpus, whatever its weight.
    mixture: Mapping[str, float] = setting(
        {},
        "corpora by name and how often training draws a sequence from each, in proportion; 0: not read. data.mixture.cpsc=2",
        Rule(
            lambda weights: (
                all(re.fullmatch(r"[A-Za-z]\w{0,31}", name, re.ASCII) and 0 <= weights[name] < math.inf for name in weights)
                and (not weights or 0 < sum(weights.values()) < math.inf)
            ),
            "names of letters, digits and _ with finite weights of 0 or more, at least one above 0",
        ),
    )
    parts: Mapping[str, Mapping[str, Any]] = setting(
        {},
        "settings of its corpora by name, where they are not those of `data`: root and others; corpus, where the name is "
        "none. data.parts.cpsc.root=CPSC",
    )
    measured_of: str = setting("ptbxl", "measured: the corpus whose recordings, patients and splits are taken")
    root: str = setting(
        "data/ptbxl",
        "folder of the recordings: with ptbxl_database.csv, record_list.csv, several sets, or your own",
        is_path=True,
    )
    sample_rate: int = setting(500, "which of PTB-XL's two sets is read, Hz", one_of(100, 500))
    ecgqa_root: str = setting("", 'the folder ecgqa of ECG-QA; "" is the folder ecgqa beside data.root', is_path=True)
    question: str = setting("Could you please help me explain my ECG?", "ptbxl, mimic: asked of every recording")
    translations: str = setting(
        "", "ptbxl: CSV file with ecg_id and report, whose reports replace the German ones", is_path=True
    )
    conversations: str = setting(
        "", 'ecg_chat and other conversations: their file, or folder; "" is that of its usual name in data.root', is_path=True
    )
    table: str = setting(
        "", "own: CSV or JSONL file with record, question, answer, patient, and maybe split and id", is_path=True
    )
    # PTB-XL: folds 1-7, 8 and 9-10 of the recordings with a diagnostic superclass. Elsewhere 70/12/18% regardless of the
    # patient, drawn over ECG-QA's questions in both wordings, ECG-Chat's conversations or MIMIC's recordings. It replaces
    # `split` and `wording`.
    published_split: bool = setting(False, "ECG-Byte's own split, in which patients are in training and test at once")
    question_types: tuple[str, ...] = setting(
        ("single-verify", "single-choose", "single-query"), "ECG-QA, sets of labels, measured: types of questions; () takes all"
    )
    label_set: str = setting(
        "statements",
        "ptbxl_labels: its 5 diagnostic superclasses, 23 subclasses, or 71 statements",
        one_of("superclasses", "subclasses", "statements"),
    )
    wording: str = setting("template", "ecg_qa: template or paraphrased questions", one_of("template", "paraphrased"))
    folds: int = setting(
        0,
        "above 0: cross-validation by patient with this many folds, stratified by label where there is one, in place of "
        "any other split; 5 and 10 follow PTB-XL's own folds",
        Rule(lambda count: count == 0 or count >= 3, "0, or 3 or more"),
    )
    fold: int = setting(
        0, "from 1 to data.folds: the fold that is the test split; the next is the validation split", at_least(0)
    )
    split: str = setting(
        "official", "ECG-QA: its own split, or by the recordings' folds (PTB-XL's 1-8, 9, 10)", one_of("official", "folds")
    )
    seed: int = setting(
        -1,
        "of what is prepared and asked; -1: `seed`; given, trainings of other seeds share one preparation and its questions",
        between(-1, 2**32 - 1),
    )
    synthetic_records: int = setting(
        0, "above 0: this many recordings and their questions are made in the work directory", at_least(0)
    )
    ecg: str = setting(
        "own",
        'what training shows: "own", or, as a control, "shuffled": another patient\'s; "zeros": 0 mV; "none": no ECG token',
        one_of(*SHOWN),
    )
    max_segments: int = setting(0, "segments taken from each recording, from its start; 0: all", at_least(0))
    max_bad_fraction: float = setting(0.05, "preparation fails if a larger share of the examples is set aside", between(0, 1))
    sequences_per_file: int = setting(20_000, "sequences in a file of token shards", at_least(1))
    questions_together: int = setting(
        1, "chat: training questions about the same ECGs, at most, that become the turns of one sequence", at_least(1)
    )
    packing: bool = setting(False, "several sequences in one row of a batch; train.batch_size then counts rows")
    length_buckets: tuple[int, ...] = setting(
        (320, 384, 448, 512, 640, 768),
        "without packing: rows are as long as the shortest of these that holds them, tokens; (): prompt.max_length",
        Rule(lambda sizes: list(sizes) == sorted(set(sizes)) and all(size > 0 for size in sizes), "rising lengths above 0"),
    )

    def __post_init__(self) -> None:
        check(self)
        check(self, [*self._fold_problems(), *self._mixture_problems()])

    def _fold_problems(self) -> list[str]:
        """What is wrong with the cross-validation."""
        expected = f"1 to {self.folds} expected" if self.folds else "0 expected without data.folds"
        wrong = not (1 <= self.fold <= self.folds if self.folds else self.fold == 0)
        both = self.folds and self.published_split
        return [
            f"fold: {self.fold} found, {expected}" if wrong else "",
            f"folds: {self.folds} found with published_split, one of them expected" if both else "",
        ]

    def _mixture_problems(self) -> list[str]:
        """What is wrong with the mixture, which must have values of the right types."""
        if bool(self.mixture) != (self.corpus == MIXTURE):
            return [
                f"mixture: {self.mixture} found with data.corpus {self.corpus!r}; weights with {MIXTURE!r} expected, or none "
                "with another corpus"
            ]
        problems = [f"parts.{name}: found without a weight in data.mixture" for name in self.parts.keys() - self.mixture.keys()]
        if self.mixture and self.published_split:
            problems.append("published_split: True found with a mixture, where no patient may be in training and test at once")
        if self.mixture and self.folds:
            problems.append(f"folds: {self.folds} found with a mixture, whose corpora keep their own splits; 0 expected")
        for name, own in self.parts.items():
            problems += [f"parts.{name}.{setting}: not a setting of one corpus" for setting in own if setting in _OF_THE_RUN]
            if own.get("corpus") == MIXTURE:
                problems.append(f"parts.{name}.corpus: {MIXTURE!r} found, a single corpus expected")
        for name in self.mixture if not problems else ():
            try:
                self.part(name)
            except SettingsError as error:
                problems += [f"parts.{name}.{problem}" for problem in error.problems]
        for first, second in combinations(sorted(self.mixture) if not problems else (), 2):
            if self.mixture[first] and self.mixture[second] and self.part(first) == self.part(second):
                problems.append(f"parts.{second}: the corpus and settings of {first!r} found again, others expected")
        return sorted(problems)

    def part(self, name: str) -> "DataSettings":
        """The settings of one corpus of the mixture: its own, and otherwise those of the whole."""
        whole = {f.name: getattr(self, f.name) for f in fields(self)}
        part: DataSettings = _make_part(
            DataSettings, whole | {"mixture": {}, "parts": {}, "corpus": name} | {**self.parts.get(name, {})}
        )
        return part

    @property
    def shares(self) -> dict[str, float]:
        """The share of each corpus of the mixture in what training draws, in sum 1, in the order of their names."""
        total = sum(self.mixture.values())
        return {name: weight / total for name, weight in sorted(self.mixture.items()) if weight}


@dataclass(frozen=True)
class SignalSettings(CleanConfig):
    """How recordings are cleaned and cut."""

    segment_length: int = setting(500, "samples of a segment: 2 s", at_least(1))


@dataclass(frozen=True)
class PrepareSettings:
    """Where preparation runs; its outputs do not depend on it."""

    workers: int = setting(1, "processes on this machine; more than 1 need the extra `cluster`", at_least(1))
    scheduler: str = setting("", "tcp://host:8786: a Dask scheduler whose workers see the same files")
    task_records: int = setting(256, "recordings of one task", between(1, 10_000))
    cache: str = setting(
        "", 'folder of cleaned symbols, which several runs may share; "" is cache/ in the work directory', is_path=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TokenizerSettings:
    """How the ECG tokenizer is trained."""

    file: str = setting("", 'an ecg_tokenizer.json to be used as it is; "": one is trained', is_path=True)
    num_merges: int = setting(3500, "merges of the byte pair encoding", between(1, 20_000))
    boundary: str = setting(
        "",
        'what no token crosses: "" nothing, as published; "record": ends of segments; "lead": ends of leads',
        one_of("", "record", "lead"),
    )
    sampling: str = setting(
        "all",
        "training recordings that the encoding is trained on: all, some at random, or evenly over clusters of morphology",
        one_of("all", "random", "stratified"),
    )
    sample_records: int = setting(10_000, "how many, where not all; each takes up to 100 KB of memory", at_least(1))
    max_clusters: int = setting(100, "stratified: 2 to this many clusters are tried; needs the extra `sampling`", at_least(2))
    percentile_records: int = setting(
        1000, "training recordings, drawn at random, that the percentiles 1 and 99 come from", at_least(1)
    )
    by_weight: bool = setting(
        False,
        "mixture: the recordings for percentiles and sampling are drawn as often as training shows them, not evenly",
    )
    merges_csv: bool = setting(False, "--stage=tokenizer also writes tokenizer/merges.csv")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class PromptSettings:
    """How ECG, question and answer become one sequence."""

    format: str = setting(
        "plain", '"plain": as published; "chat": by the chat template of model.pretrained', one_of("plain", "chat")
    )
    system: str = setting(
        "You are an expert in reading 12-lead electrocardiograms (ECGs).",
        'chat: text of the system turn; "": none',
        Rule(lambda text: not any("\ud800" <= character <= "\udfff" for character in text), "text in UTF-8"),
    )
    max_length: int = setting(1024, "tokens; longer ECGs are cut at their end", at_least(8))
    # At least the 256 bytes and the special tokens.
    text_vocab_size: int = setting(2000, "entries of the text tokenizer, where no pretrained one is used", at_least(260))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OptimSettings:
    """The optimizer."""

    preset: str = setting(
        "ecg_byte", '"ecg_byte": as published; "adamw": decoupled decay and the settings below', one_of("ecg_byte", "adamw")
    )
    peak_rate: float = setting(1e-3, "adamw: highest learning rate; the published schedule follows from the width", above(0))
    schedule: str = setting("cosine", "adamw: how the rate falls to 0 at the last step", one_of("cosine", "linear"))
    warmup: int = setting(500, "steps", at_least(1))
    b1: float = setting(0.9, "decay of Adam's first moment", _BELOW_1)
    b2: float = setting(0.99, "decay of Adam's second moment", _BELOW_1)
    weight_decay: float = setting(1e-2, "weight decay", at_least(0))
    embedding_rate: float = setting(
        1.0,
        "with model.train_new_embeddings: learning rate of the ECG tokens' embeddings, as a multiple of that of the rest",
        above(0),
    )
    clip_norm: float = setting(1.0, "largest global norm of the gradient", above(0))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainSettings:
    """How long training lasts, and what it leaves."""

    batch_size: int = setting(2, "rows a step, over all devices", at_least(1))
    accumulate: int = setting(1, "parts of a batch that go through the model one after the other", at_least(1))
    epochs: float = setting(1.0, "times that every sequence is seen", above(0))
    checkpoint_every: int = setting(1000, "steps between checkpoints, and validations", at_least(1))
    valid_batches: int = setting(50, "batches of the validation split, at most", at_least(1))
    valid_answers: int = setting(0, "validation questions that are answered for an exact match; 0: none", at_least(0))
    patience: int = setting(0, "validations without a better loss until training ends; published: 5; 0: never", at_least(0))
    patience_delta: float = setting(0.01, "nats by which a loss must be above the best one to count as worse", at_least(0))
    turns: str = setting(
        "all",
        'chat: "all": a conversation is one sequence, the loss is taken on every answer; "last": each question is a sequence, '
        "after its earlier turns, with the loss on its answer",
        one_of("all", "last"),
    )
    keep_checkpoints: int = setting(
        2, "newest checkpoints kept; the one with the least validation loss is kept beside them", at_least(1)
    )
    wandb_project: str = setting("", 'Weights & Biases, with the extra `wandb`; "": off')

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class PretrainSettings:
    """How long the encoder of a two-stage baseline is trained by itself; the defaults are ECG-Bench's."""

    batch_size: int = setting(256, "segments a step, over all devices", at_least(1))
    epochs: float = setting(50.0, "times that every segment is seen", above(0))
    checkpoint_every: int = setting(1000, "steps between checkpoints, and validations", at_least(1))
    valid_batches: int = setting(50, "batches of the validation split, at most", at_least(1))
    patience: int = setting(0, "validations without a better loss until the training ends; 0: never", at_least(0))
    patience_delta: float = setting(0.0, "by how much a loss must be above the best one to count as worse", at_least(0))
    keep_checkpoints: int = setting(
        2, "newest checkpoints kept; the one with the least validation loss is kept beside them", at_least(1)
    )
    wandb_project: str = setting("", 'Weights & Biases, with the extra `wandb`; "": off')

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each axis; -1, once, takes what the others leave."""

    data: int = setting(-1, "rows of the batch are split, parameters repeated")
    fsdp: int = setting(1, "rows of the batch and parameters are split")
    tensor: int = setting(1, "parameters are split, rows repeated")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DistributedSettings:
    """Several processes that work as one."""

    initialize: bool = setting(False, "this process is one of several, started with the same command")
    address: str = setting("", 'host:port of process 0; "": what jax finds (Slurm, TPU, GKE)')
    processes: int = setting(0, "number of processes; 0: what jax finds", at_least(0))
    process: int = setting(-1, "number of this process, from 0; -1: what jax finds")
    timeout: int = setting(300, "s to wait for the others at the start", at_least(1))
    heartbeat: int = setting(30, "s without a sign of life until a process counts as dead and the others end", at_least(1))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FitSettings:
    """For which hardware --stage=fit compiles."""

    topology: str = setting("here", 'CHIP-DEVICES, for example v5e-8 or h100-8, or the devices that are "here"')
    search: bool = setting(False, "find the most rows a device with model.remat 'products', 'attention' and 'inputs'")
    tokens: int = setting(0, "tokens of an epoch, for its hours, where nothing is prepared", at_least(0))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ExportSettings:
    """What --stage=export writes."""

    checkpoint: str = setting(
        "last",
        '"last", "best" (by validation loss) or a step',
        Rule(lambda which: which in ("last", "best") or which.isdecimal(), '"last", "best" or a step'),
    )
    adapter: bool = setting(False, "with LoRA: False merges it into the weights, True writes a PEFT adapter")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EvalSettings:
    """Which questions are answered, how, and how the answers are scored."""

    name: str = setting(
        "",
        'of this evaluation, which is then in eval/NAME beside others; "": in eval/ itself',
        Rule(lambda name: bool(re.fullmatch(r"[A-Za-z0-9_-]{0,64}", name)), "letters, digits, _ and -, 64 at most"),
    )
    split: str = setting("test", "split of the corpus", one_of(*SPLITS))
    checkpoint: str = setting(
        "last",
        '"last", "best" (by validation loss), a step, "start" (the model before training), or a Hugging Face folder',
        Rule(
            lambda which: which in ("last", "best", "start") or which.isdecimal() or (which and Path(which).is_dir()),
            '"last", "best", a step, "start" or a Hugging Face folder',
        ),
        is_path=True,
    )
    ecg: str = setting("own", "what the questions are asked with, as data.ecg", one_of(*SHOWN))
    history: str = setting(
        "reference",
        'of later questions of a conversation: "reference": the earlier reference answers; "own": the model\'s own ones',
        one_of("reference", "own"),
    )
    batch_size: int = setting(16, "questions answered together", at_least(1))
    max_new_tokens: int = setting(128, "tokens of an answer, at most", at_least(1))
    max_sequences: int = setting(0, "sequences drawn at random; 0: all", at_least(0))
    temperature: float = setting(0.0, "0: always the likeliest token; above: drawn at random", at_least(0))
    top_k: int = setting(0, "drawn from this many likeliest tokens; 0: all", at_least(0))
    top_p: float = setting(
        1.0,
        "and of those from the fewest that hold this share of the probability",
        Rule(lambda share: 0 < share <= 1, "above 0, 1 at most"),
    )
    seeds: tuple[int, ...] = setting(
        (0,),
        "of the draws; several need a temperature above 0. Published: 0, 42, 123, 456, 789",
        Rule(
            lambda seeds: seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**32,
            "one whole number or more, none twice, each from 0 to 4294967295",
        ),
    )
    perturb: tuple[str, ...] = setting(
        (), "faults of recordings that the model is also asked with, to measure how scores fall", some_of(*PERTURBATIONS)
    )
    labels: int = setting(
        0,
        "questions with 2 to this many different answers in training also get label scores (AUROC and others), from the "
        "probability of each; 0: none. Needs the extra `labels`",
        Rule(lambda most: most == 0 or most >= 2, "0, or 2 or more"),
    )
    bootstrap: int = setting(1000, "resamples of the patients for the 95% intervals", at_least(100))
    bertscore_model: str = setting(
        "", 'a Hugging Face folder (published: roberta-large); "": no BERTScore; needs the extra `bertscore`', is_path=True
    )

    def __post_init__(self) -> None:
        same = isinstance(self.seeds, tuple) and len(self.seeds) > 1 and self.temperature == 0
        remedy = "one seed, or a temperature above 0 expected"
        problems = [f"seeds: {self.seeds} found with temperature 0, which answers the same for all; {remedy}" if same else ""]
        nothing = self.perturb and self.ecg == "none"
        unnamed = self.ecg != "own" and not self.name
        problems.append(
            f"ecg: {self.ecg!r} found without a name, 'own' expected, or a name beside the run's own" if unnamed else ""
        )
        problems.append(f"perturb: {self.perturb} found with ecg 'none', which shows nothing to perturb" if nothing else "")
        own = self.labels and self.history == "own"
        problems.append(
            f"labels: {self.labels} found with history 'own', 'reference' expected, after which candidates are scored"
            if own
            else ""
        )
        check(self, problems)


@dataclass(frozen=True)
class AttendSettings:
    """Whose attention --stage=attend and the report show."""

    examples: tuple[str, ...] = setting((), "ids of evaluated examples; (): the report's")
    layers: tuple[int, ...] = setting((), "layers that the attention is averaged over, counted from 0; (): all", _WHOLE)
    heads: tuple[int, ...] = setting((), "heads that the attention is averaged over; (): all", _WHOLE)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class HeadlineSettings:
    """What --stage=headline compares."""

    systems: tuple[str, ...] = setting(
        (), "names of systems (`sweep/systems.py`), the first of which the others are compared to; (): all"
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2), "of the trainings of each system", Rule(lambda seeds: seeds and min(seeds) >= 0, "one whole number or more")
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ServeSettings:
    """Where --stage=serve listens, and how much it takes on."""

    host: str = setting("127.0.0.1", "address to listen on; other machines reach none but a loopback's own", _ONE_WORD)
    port: int = setting(8000, "port to listen on; 0: any that is free", between(0, 65535))
    token: str = setting("", 'what clients must send as "Authorization: Bearer TOKEN"; "": nothing', _TOKEN)
    insecure: bool = setting(False, "listen without a token to other machines too")
    slots: int = setting(32, "segments answered together", at_least(1))
    queue: int = setting(64, "questions that may wait; further ones are refused until there is room", at_least(1))
    cache_mb: int = setting(256, "MB of ECGs that were read for a question, kept for the next", at_least(0))
    recordings_mb: int = setting(256, "MB of recordings kept, the latest used; they are never on disk", at_least(1))
    upload_mb: int = setting(32, "MB of a request, at most", at_least(1))
    incoming_mb: int = setting(256, "MB of all requests at a time; further ones are refused until there is room", at_least(1))
    upload_seconds: float = setting(30.0, "s in which a request must have arrived, and some of its answer be taken", above(0))
    recording_seconds: float = setting(300.0, "s of a recording, at most", above(0))
    read_seconds: float = setting(20.0, "s that reading and cleaning a file may take", above(0))
    read_mb: int = setting(2048, "MB of memory that it may take", at_least(512))
    question_length: int = setting(2000, "characters of a message, at most", at_least(1))
    messages: int = setting(32, "messages of a conversation, at most", at_least(1))
    closing_seconds: float = setting(30.0, "s that running answers get after SIGTERM", above(0))

    def __post_init__(self) -> None:
        local = self.host in LOOPBACK
        open_to_all = not (local or self.token or self.insecure)
        check(
            self,
            [
                f"host: {self.host!r} found without serve.token, which clients on other machines must know; give one, or "
                "serve.insecure"
                if open_to_all
                else "",
                f"incoming_mb: {self.incoming_mb} found, at least upload_mb {self.upload_mb} expected"
                if self.incoming_mb < self.upload_mb
                else "",
            ],
        )


@dataclass(frozen=True)
class Settings:
    """All settings of a run; raises SettingsError that lists every one that cannot work, ConfigError for impossible vectors."""

    seed: int = setting(0, "of everything random", between(0, 2**32 - 1))
    data: DataSettings = field(default_factory=DataSettings)
    signal: SignalSettings = field(default_factory=SignalSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimSettings = field(default_factory=OptimSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    ecg_input: EcgInputConfig = field(default_factory=EcgInputConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    pretrain_optim: OptimSettings = field(default_factory=OptimSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    distributed: DistributedSettings = field(default_factory=DistributedSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    attend: AttendSettings = field(default_factory=AttendSettings)
    headline: HeadlineSettings = field(default_factory=HeadlineSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)

    def __post_init__(self) -> None:
        chat, together = self.prompt.format == "chat", self.data.questions_together
        trained_rows = self.model.train_new_embeddings and self.lora.rank
        rate = self.optim.embedding_rate
        contradictions = {
            "eval.perturb: 'wander' needs one sample rate of all recordings: signal.target_rate above 0 expected": (
                "wander" in self.eval.perturb and not self.signal.target_rate
            ),
            "prompt.format: 'chat' found without model.pretrained, whose chat template it takes": (
                chat and not self.model.pretrained
            ),
            f"data.questions_together: {together} found, which needs prompt.format 'chat' and train.turns 'all'": (
                together > 1 and not (chat and self.train.turns == "all")
            ),
            f"optim.embedding_rate: {rate} found, which needs model.train_new_embeddings and lora.rank": (
                rate != 1 and not trained_rows
            ),
        }
        contradictions |= {
            "model.new_rows: 'waveform' found without model.pretrained, beside whose embeddings they begin": (
                self.model.new_rows != "mean" and not self.model.pretrained
            ),
            f"pretrain_optim.embedding_rate: {self.pretrain_optim.embedding_rate} found, 1 expected": (
                self.pretrain_optim.embedding_rate != 1
            ),
            f"lora.first_layer: {self.lora.first_layer} found with lora.rank 0, which has no LoRA": (
                self.lora.first_layer > 0 and not self.lora.rank
            ),
            "train.turns: 'last' found, which needs prompt.format 'chat'": self.train.turns != "all" and not chat,
            f"model.quantize: '{self.model.quantize}' found, which needs lora.rank above 0 and model.pretrained": (
                self.model.quantize != "" and not (self.lora.rank and self.model.pretrained)
            ),
            "tokenizer.by_weight: True found, which needs a data.mixture and tokenizer.sampling 'random' or 'stratified'": (
                self.tokenizer.by_weight and not (self.data.mixture and self.tokenizer.sampling != "all")
            ),
        }
        check(self, [problem for problem, found in contradictions.items() if found])
        check_vectors(self.ecg_input, self.encoder, self.signal.segment_length)

    @property
    def data_seed(self) -> int:
        """Of what is prepared and asked: synthetic recordings, samples, turns, an evaluation's questions and other ECGs."""
        return self.seed if self.data.seed < 0 else self.data.seed

    @classmethod
    def of(cls, config: ConfigDict) -> "Settings":
        """The settings of an experiment; raises SettingsError that lists every one that is unknown or cannot work."""
        return cls.of_dict(config.to_dict())

    @classmethod
    def of_dict(cls, config: dict[str, Any]) -> "Settings":
        """The settings in a dictionary, which may come from JSON; raises SettingsError as `of` does."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        given, known = _plain(config), {part.name: part for part in fields(cls)}
        for name in sorted(given.keys() - known.keys()):
            problems.append(f"{name}: no such setting")
        for name, part in known.items():
            if name not in given or not isinstance(part.default_factory, type):
                values |= {name: given[name]} if name in given else {}
                continue
            try:
                values[name] = _make_part(part.default_factory, given[name])
            except SettingsError as error:
                problems += [f"{name}.{problem}" for problem in error.problems]
        if problems:
            raise SettingsError(problems)
        return cls(**values)


def default_config() -> ConfigDict:
    """The defaults as an experiment starts from them; unknown names are refused."""
    return ConfigDict(asdict(Settings())).lock()


def part_config(**own: object) -> ConfigDict:
    """The settings of one corpus in a mixture: those that are its own, and places in which flags can put others."""
    kinds = {name: kind for name, kind in get_type_hints(DataSettings).items() if name not in _OF_THE_RUN}
    places = {name: placeholder(get_origin(kind) or kind) for name, kind in kinds.items()}
    return ConfigDict(places | own)


def stored_config(path: Path) -> ConfigDict:
    """The settings that a run left in its config.json, as an experiment gives them.

    `distributed` is left out: it is about the command that ran, not about the run. Raises ConfigError where the file is
    missing, damaged, not of a run, or of one that has no settings of a model yet.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the config.json of a run expected") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); the config.json of a run expected") from error
    parts = {part.name: part.default_factory for part in fields(Settings)}
    if not isinstance(stored, dict) or not stored or not stored.keys() <= parts.keys():
        found = sorted(stored.keys() - parts.keys())[:3] if isinstance(stored, dict) else type(stored).__name__
        raise ConfigError(f"{path}: {found} found, the settings of a run expected ({', '.join(parts)})")
    if missing := [name for name in parts if name not in {*stored, *_LATER}]:
        raise ConfigError(
            f"{path}: no settings of {', '.join(missing)}: no training has finished here; give --config=experiments/NAME.py"
        )
    config = asdict(Settings())
    for name, given in stored.items():
        part = parts[name]
        if name == "distributed":
            continue
        if not isinstance(part, type):
            config[name] = given
            continue
        unknown = sorted(given.keys() - config[name].keys()) if isinstance(given, dict) else [repr(given)]
        if unknown:
            raise ConfigError(f"{path}: {name}.{unknown[0]}: no such setting; remove it from the file, or give --config")
        types = get_type_hints(part)
        config[name] |= {key: _convert(_plain(value), types[key], False) for key, value in given.items()}
    own = config["data"]["parts"]
    config["data"]["parts"] = {name: part_config(**own.get(name, {})) for name in (*own, *config["data"]["mixture"])}
    return ConfigDict(config).lock()


def _make_part(part: type, given: object) -> Any:
    if not isinstance(given, Mapping):
        raise SettingsError([f"{given!r} found, a part with settings of its own expected"])
    unknown = sorted(given.keys() - {f.name for f in fields(part)})
    if unknown:
        raise SettingsError([f"{name}: no such setting" for name in unknown])
    types, paths = get_type_hints(part), {f.name for f in fields(part) if f.metadata["is_path"]}
    return part(**{name: _convert(value, types[name], name in paths) for name, value in given.items()})


def _convert(value: Any, kind: Any, is_path: bool) -> Any:
    """Expands ~ in a path, and makes whole numbers floats where these are expected: equal settings have one identity.

    None, which a flag has not replaced, is left out of settings by name.
    """
    if get_origin(kind) is Mapping and isinstance(value, dict):
        inner = get_args(kind)[1]
        return {name: _convert(item, inner, False) for name, item in value.items() if item is not None}
    if is_path and isinstance(value, str):
        return os.path.expanduser(value)
    if get_origin(kind) is tuple and isinstance(value, tuple):
        return tuple(_convert(item, get_args(kind)[0], False) for item in value)
    small = kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return float(value) if small else value


def _plain(value: Any) -> Any:
    """Dicts and tuples throughout: a config that was read from JSON has lists."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
