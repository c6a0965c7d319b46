"""Conversations that are evaluated with the model's own answers as the history of later questions."""

from collections.abc import Iterable

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.generations import OTHER, OWN
from ecgbyte_jax.evaluate.questions import Item

Turns = tuple[tuple[str, str], ...]  # (question, answer)


def by_turn(items: list[Item]) -> list[list[Item]]:
    """The items by the number of questions before them in their conversation, first questions first, each in their order.

    Raises ConfigError for one whose earlier question is not among them.
    """
    previous = {item.sequence.id: item.sequence.previous for item in items}
    rounds: list[list[Item]] = []
    for item in items:
        number, id = 0, item.sequence.previous
        while id:
            if id not in previous:
                raise ConfigError(
                    f"eval.history 'own': question {item.sequence.id!r} follows {id!r}, which is not evaluated; eval.history "
                    "'reference' expected, or eval.max_sequences 0 unless preparation set that question aside"
                )
            number, id = number + 1, previous[id]
        rounds += [[] for _ in range(number + 1 - len(rounds))]
        rounds[number].append(item)
    return rounds


class OwnAnswers:
    """The model's answers so far to the questions of conversations, for each kind of ECG that they were asked of."""

    def __init__(self, items: list[Item]):
        self._previous = {item.sequence.id: item.sequence.previous for item in items}
        self._turns: dict[tuple[str, int, int], tuple[str, dict[str, str]]] = {}

    def add(self, rows: Iterable[dict]) -> None:
        """Adds the answers in lines of generations."""
        for row in rows:
            answers = {OWN: row["answer"], OTHER: row["answer_to_other_ecg"], **row.get("answers_perturbed", {})}
            self._turns[row["id"], row["segment"], row["seed"]] = row["question"], answers

    def before(self, id: str, segment: int, seed: int, view: str) -> Turns:
        """The questions before this one with the model's answers to them."""
        previous = self._previous[id]
        if not previous:
            return ()
        question, answers = self._turns[previous, segment, seed]
        return (*self.before(previous, segment, seed, view), (question, answers[view]))
