"""Dialogues as a model's own chat template writes them, with the ECGs at the start of the first user turn.

The loss is taken on the assistant's turns with their end tokens: on what the template marks by `{% generation %}` and the end
token after it, or else from the end of the prompt that the template makes for an answer to the answer's end token.
"""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer

from ecgbyte_jax.errors import ExampleError, TokenizerError
from ecgbyte_jax.inputs.prompt import Dialogue, Text
from ecgbyte_jax.inputs.text import SIG_END, SIG_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_GIVEN: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
# A template that writes the day would give other files every day: it always gets that one, which is Llama's own default.
_DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
_FIXED_DAY = "{%- macro strftime_now(form) %}{{ form" + "".join(f" | replace({k!r}, {v!r})" for k, v in _DAY.items())
_FIXED_DAY += " }}{% endmacro %}"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What code in a template can raise.
_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_PRIVATE = range(0xE000, 0xF8FF)  # characters without a meaning of their own, in place of special tokens' spellings


@dataclass(frozen=True, eq=False)
class Chat:
    """How dialogues become ids by the chat template of `tokenizer`.

    system: the text of the system turn, "" for none; takes_system: whether the template has such a turn, else the text is in
    front of the first question; stops: the ids that end an answer. parsing reads the spelling of a special token as that token,
    literal as text; special finds such spellings.
    """

    tokenizer: "PreTrainedTokenizerFast"
    system: str
    takes_system: bool
    stops: tuple[int, ...]
    parsing: Tokenizer
    literal: Tokenizer
    special: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", system: str) -> "Chat":
        """For a tokenizer with ECG tokens (`text.add_ecg_tokens`); raises TokenizerError where its template cannot be used."""
        where = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise TokenizerError(
                f"{where}: no chat template found; the folder of an instruct model, or prompt.format 'plain' expected"
            )
        parsing, literal = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
        for encoder in (parsing, literal):
            encoder.no_padding()
            encoder.no_truncation()
        parsing.encode_special_tokens, literal.encode_special_tokens = False, True
        names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        chat = cls(tokenizer, system, True, (), parsing, literal, _any_of(names))
        if spelling := chat.special.search(system):
            raise TokenizerError(
                f"prompt.system: {spelling[0]!r} found, which {where} reads as a special token; other words expected"
            )
        chat = replace(chat, takes_system=not system or chat._shows_system())
        try:
            return replace(chat, stops=chat._find_stops())
        except ExampleError as error:
            raise TokenizerError(f"{where}: its chat template cannot be used: {error}") from error

    def check_every_answer(self) -> None:
        """Raises TokenizerError where the template does not let the loss be taken on all answers of a conversation."""
        probe = Dialogue(1, (("question", "answer"), ("question", "answer")))
        (found,) = self.texts([probe], every_answer=True)
        if isinstance(found, ExampleError):
            remedy = "train.turns 'last' expected, which makes each question a sequence of its own"
            raise TokenizerError(f"{self.tokenizer.name_or_path}: in its chat template {found}; {remedy}")

    def texts(self, dialogues: list[Dialogue], every_answer: bool = False) -> list[Text | ExampleError]:
        """The dialogues with the loss on the answer to the last question, or on every one; or why there is no such text."""
        found: list[Text | ExampleError] = []
        for dialogue in dialogues:
            try:
                found.append(self._text(dialogue, every_answer))
            except ExampleError as error:
                found.append(error)
        return found

    def prompts(self, dialogues: list[Dialogue]) -> list[np.ndarray | ExampleError]:
        """The ids int32 [n] that a model is given to answer the last question of each dialogue; or why there are none."""
        found: list[np.ndarray | ExampleError] = []
        for dialogue in dialogues:
            escaped, spelt = self._escape(dialogue)
            try:
                found.append(self._encode(self._render(escaped, len(escaped.turns)), spelt)[0])
            except ExampleError as error:
                found.append(error)
        return found

    def locate(self, dialogue: Dialogue) -> tuple[str, np.ndarray, list[tuple[int, int]]]:
        """The last question, the places int [q] of its tokens in the prompt's ids, and their characters in it."""
        escaped, spelt = self._escape(dialogue)
        prompt, question = self._render(escaped, len(escaped.turns)), escaped.turns[-1][0]
        shown = _spell(question, spelt)
        asked = self._render(escaped, len(escaped.turns), headed=False)  # the answer's header may hold the question's words too
        # A template may strip a question.
        first = len(_spell(prompt[: asked.rindex(question.strip())], spelt)) - (len(shown) - len(shown.lstrip()))
        _, offsets = self._encode(prompt, spelt)
        (places,) = np.nonzero((offsets[:, 1] > first) & (offsets[:, 0] < first + len(shown.rstrip())))
        return shown, places, [(max(int(a) - first, 0), int(b) - first) for a, b in offsets[places]]

    def _text(self, dialogue: Dialogue, every_answer: bool) -> Text:
        escaped, spelt = self._escape(dialogue)
        turns = len(escaped.turns)
        spans: list[tuple[int, int]] | None = None
        if _GENERATION.search(self._template()):
            whole, spans = self._render_marked(escaped)
            if len(spans) != turns:
                raise ExampleError(f"{len(spans)} places are marked as generation, {turns} expected")
        else:
            whole = self._render(escaped)
        ids, offsets = self._encode(whole, spelt)
        answers = np.zeros(len(ids), bool)
        start = 0
        for turn in range(1 if every_answer and spans is None else turns, turns + 1):
            start = self._prompt_length(escaped, spelt, turn, ids)
            if spans is None:
                answers[start : self._end(ids, start)] = True
        for first, last in [] if spans is None else spans if every_answer else spans[-1:]:
            first, last = (len(_spell(whole[:place], spelt)) for place in (first, last))
            (places,) = np.nonzero((offsets[:, 1] > first) & (offsets[:, 0] < last))
            answers[places] = True
            if not np.isin(ids[places], self.stops).any():  # else a model would not learn to end an answer
                end = int(places[-1]) + 1
                answers[end : self._end(ids, end)] = True
        return Text(ids, answers, start)

    def _prompt_length(self, dialogue: Dialogue, spelt: dict[str, str], turn: int, ids: np.ndarray) -> int:
        """How many ids the prompt for this turn's answer has; raises ExampleError where the dialogue does not begin with it."""
        prompt, _ = self._encode(self._render(dialogue, turn), spelt)
        if len(prompt) >= len(ids) or not np.array_equal(ids[: len(prompt)], prompt):
            if turn < len(dialogue.turns):
                raise ExampleError(f"answer {turn} is written otherwise once another question follows it")
            raise ExampleError("the answer does not continue the prompt that is made for it, or merges with its last token")
        return len(prompt)

    def _end(self, ids: np.ndarray, start: int) -> int:
        """The place after the end token of the answer that starts here."""
        (ends,) = np.nonzero(np.isin(ids[start:], self.stops))
        if not len(ends):
            raise ExampleError("an answer ends without a special token, so a model could not learn to end it")
        return start + int(ends[0]) + 1

    def _find_stops(self) -> tuple[int, ...]:
        """The end token of an answer, and eos; raises ExampleError where the template cannot be used."""
        probe = Dialogue(1, (("question", "answer"),))
        ids, _ = self._encode(self._render(probe), {})
        prompt = self._prompt_length(probe, {}, 1, ids)
        markers = self.tokenizer.convert_tokens_to_ids([SIG_START, SIG_END])
        if ids[np.isin(ids, markers)].tolist() != markers:
            raise ExampleError("the question's text is not written as it is")
        named = replace(self, stops=tuple(self.tokenizer.added_tokens_decoder))
        end = named._end(ids, prompt)
        answer: Any = self.tokenizer.decode(ids[prompt : end - 1])
        if answer.strip() != "answer":
            written = self.tokenizer.decode(ids[prompt:end])
            raise ExampleError(f"after the prompt it writes {written!r}, the answer's text and an end token expected")
        return tuple(sorted({int(ids[end - 1]), self.tokenizer.eos_token_id}))

    def _shows_system(self) -> bool:
        """Whether the template writes a system turn; many refuse it, or leave it out."""
        probe = replace(self, system=chr(_PRIVATE[0]))  # a short text may be in the template itself
        try:
            return probe.system in probe._render(Dialogue(1, (("question", ""),)), 1)
        except ExampleError:
            return False

    def _messages(self, dialogue: Dialogue) -> list[dict[str, str]]:
        turns = [list(turn) for turn in dialogue.turns]
        turns[0][0] = (SIG_START + SIG_END) * dialogue.ecgs + turns[0][0]
        if self.system and not self.takes_system:
            turns[0][0] = f"{self.system}\n\n{turns[0][0]}"
        system = [{"role": "system", "content": self.system}] if self.system and self.takes_system else []
        roles = ("user", "assistant")
        return system + [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn)]

    def _render(self, dialogue: Dialogue, prompt_of: int = 0, headed: bool = True) -> str:
        """The dialogue, or with `prompt_of` the prompt for the answer of that turn, counted from 1; headed: with its header."""
        messages = self._messages(dialogue)
        messages = messages[: len(messages) - 2 * (len(dialogue.turns) - prompt_of) - 1] if prompt_of else messages
        apply: Any = self.tokenizer.apply_chat_template
        try:
            how = {"chat_template": self._template(), "tokenize": False, "add_generation_prompt": bool(prompt_of) and headed}
            return apply(messages, **how, **_GIVEN)
        except _FAULTS as error:
            raise ExampleError(f"it raises: {' '.join(str(error).split())}") from error

    def _render_marked(self, dialogue: Dialogue) -> tuple[str, list[tuple[int, int]]]:
        """The dialogue, and the characters that the template marks by `{% generation %}`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        given: Any = {"return_assistant_tokens_mask": True, **self.tokenizer.special_tokens_map, **_GIVEN}
        rendered: Any = None
        try:
            rendered = render_jinja_template([self._messages(dialogue)], chat_template=self._template(), **given)
        except _FAULTS as error:
            raise ExampleError(f"it raises: {' '.join(str(error).split())}") from error
        (whole,), (spans,) = rendered
        return whole, [(int(first), int(last)) for first, last in spans]

    def _template(self) -> str:
        template = self.tokenizer.get_chat_template()
        return _FIXED_DAY + template if "strftime_now" in template else template

    def _escape(self, dialogue: Dialogue) -> tuple[Dialogue, dict[str, str]]:
        """The dialogue with a private character for each spelling of a special token, and what each of them spells."""
        texts = "".join(text for turn in dialogue.turns for text in turn)
        spellings = dict.fromkeys(self.special.findall(texts))
        if not spellings:
            return dialogue, {}
        unused = (chr(code) for code in _PRIVATE if chr(code) not in texts)
        code_of = dict(zip(spellings, unused))
        turns = tuple((self._replace(question, code_of), self._replace(answer, code_of)) for question, answer in dialogue.turns)
        return replace(dialogue, turns=turns), {code: spelling for spelling, code in code_of.items()}

    def _replace(self, text: str, code_of: dict[str, str]) -> str:
        return self.special.sub(lambda found: code_of[found[0]], text)

    def _encode(self, text: str, spelt: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n], and the characters int [n, 2] of each in the text once `spelt` is spelt out again."""
        pieces = re.split(f"([{''.join(spelt)}])", text) if spelt else [text]
        ids, offsets, first = [], [], 0
        for piece in pieces:
            encoder = self.literal if piece in spelt else self.parsing
            spelling = spelt.get(piece, piece)
            encoding = encoder.encode(spelling, add_special_tokens=False)
            ids += encoding.ids
            offsets += [(first + start, first + end) for start, end in encoding.offsets]
            first += len(spelling)
        return np.array(ids, np.int32), np.array(offsets, int).reshape(-1, 2)


def _any_of(names: set[str]) -> re.Pattern[str]:
    """Finds the longest of the names; those that begin alike are tried together, since there are thousands of ECG tokens."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=len, reverse=True):
        groups.setdefault(name[:3], []).append(re.escape(name[3:]))
    return re.compile("|".join(f"{re.escape(begin)}(?:{'|'.join(ends)})" for begin, ends in groups.items()))


def _spell(text: str, spelt: dict[str, str]) -> str:
    """The text with what its private characters spell."""
    return "".join(spelt.get(character, character) for character in text) if spelt else text
