"""Which questions have few enough answers for each to be given a probability, and which answers these are."""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace

from ecgbyte_jax.errors import ConfigError, ExampleError
from ecgbyte_jax.evaluate.metrics import YES_NO
from ecgbyte_jax.evaluate.questions import Item, choose, choose_alone
from ecgbyte_jax.inputs.batches import open_outlines, outlines_of
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.inputs.prompt import Dialogue, Text
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.settings import Settings

_FINDING = {"question_type": "single-verify", "attribute_type": "finding"}  # the meta of a label of a whole set


@dataclass(frozen=True, eq=False)
class Asked:
    """A question of a split about an ECG, and all answers that it may have."""

    split: str
    item: Item
    candidates: tuple[str, ...]


def choose_asked(settings: Settings, prepared: Prepared, whole_sets: Container[str]) -> list[Asked]:
    """The evaluated questions that have 2 to `eval.labels` candidates, and those of the validation split, in their order.

    whole_sets: the corpora of a mixture, or "" for the only one, that ask about every label that a recording has, and about
    some that it does not have; then every label of the corpus' training split is asked about each of its recordings. Raises
    ConfigError where no question is left, and as `choose` does.
    """
    candidates, labels = _candidates(prepared, settings.eval.labels, whole_sets)
    splits = {settings.eval.split: choose(settings, prepared)}
    if settings.eval.split != "valid" and prepared.manifest.splits["valid"].sequences:
        splits["valid"] = choose_alone(settings, prepared, "valid")
    asked = []
    for split, items in splits.items():
        shown = _ask_all(items, labels, prepared, split) if labels else items
        asked += [Asked(split, item, found) for item in shown if (found := candidates.get(item.sequence.question))]
    if not any(one.split == settings.eval.split for one in asked):
        raise ConfigError(
            f"eval.labels: no question of split '{settings.eval.split}' is asked in training too and has 2 to "
            f"{settings.eval.labels} different answers there; a corpus with such questions expected, or 0"
        )
    return asked


def _candidates(
    prepared: Prepared, most: int, whole_sets: Container[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]]]:
    """The answers to each question in training, where these are 2 to `most`; by corpus, the questions of its set of labels.

    A yes/no question has both, whatever training answers.
    """
    answers: dict[str, set[str]] = {}
    outlines = open_outlines(prepared.shards, prepared.manifest, "train")
    labels: dict[str, set[str]] = {}
    for number in range(len(outlines)):
        outline = outlines[number]
        for question, answer in (*outline.history, (outline.question, outline.answer)):
            known = answers.setdefault(question, set())
            if len(known) <= most:  # else there are too many already
                known.add(answer.strip())
        if str(outline.meta.get("question_type")).endswith("-verify"):
            answers[outline.question] |= set(YES_NO)
        if outline.part in whole_sets and outline.meta.items() >= _FINDING.items():
            labels.setdefault(outline.part, set()).add(outline.question)
    few = {question: tuple(sorted(known)) for question, known in answers.items() if 2 <= len(known) <= most}
    return few, {part: kept for part, of_part in labels.items() if (kept := sorted(of_part & few.keys()))}


def _ask_all(items: list[Item], labels: dict[str, list[str]], prepared: Prepared, split: str) -> list[Item]:
    """The items, but about every recording all labels of its corpus, and no others; what it is not known to have is a no."""
    outlines = outlines_of(prepared.shards, prepared.manifest, split)
    known: dict[tuple[str, ...], dict[str, str]] = {}
    for outline in outlines:
        known.setdefault(_recording(outline), {})[outline.question] = outline.answer
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(_recording(outlines[item.place]), []).append(item)
    every = sorted({label for of_part in labels.values() for label in of_part})
    texts = dict(zip(every, make_texts(prepared, [Dialogue(1, ((label, ""),)) for label in every])))
    asked: list[Item] = []
    for recording, group in groups.items():
        own = labels.get(recording[0], [])
        asked += [item for item in group if item.sequence.question not in own]
        asked += [_ask(group[0], label, known[recording].get(label, YES_NO[1]), texts[label]) for label in own]
    return asked


def _recording(outline: Sequence) -> tuple[str, ...]:
    """The corpus of a mixture, and the ECGs' numbers: what another corpus says of a recording is no label of this one."""
    return (outline.part, *map(str, outline.ecgs))


def _ask(item: Item, label: str, answer: str, text: Text) -> Item:
    """The label's question about the item's ECG; the recording's name is what its ids begin with."""
    id = f"{item.sequence.id.partition('/')[0]}/{label}"
    return replace(item, sequence=replace(item.sequence, id=id, question=label, answer=answer, text=text, meta=_FINDING))


def make_texts(prepared: Prepared, dialogues: list[Dialogue]) -> list[Text]:
    """The texts of dialogues; raises ExampleError for the first that has none."""
    make: Callable[[list[Dialogue]], list[Text | ExampleError]] = prepared.form.texts
    texts = make(dialogues)
    for text in texts:
        if isinstance(text, ExampleError):
            raise text
    return texts
