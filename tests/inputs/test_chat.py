"""Dialogues by the folder's chat template: the same ids as `apply_chat_template`, and where the loss is taken."""

import numpy as np
import pytest

from ecgbyte_jax.errors import ExampleError, TokenizerError
from ecgbyte_jax.inputs.chat import Chat
from ecgbyte_jax.inputs.form import fit
from ecgbyte_jax.inputs.prompt import Dialogue, PromptIds, render
from ecgbyte_jax.inputs.text import add_ecg_tokens, load_text_tokenizer
from tests.chat_folders import KINDS, chat_tokenizer, write_chat_folder

ECG = "<sig_start><sig_end>"
SYSTEM = "You read ECGs."
ONE = Dialogue(1, (("What is the rate?", "About 70."),))
THREE = Dialogue(1, (("What is the rate?", "About 70."), ("Is it sinus rhythm?", "yes"), ("Sure?", "no, not at all")))
# What is written for ONE, by hand, with what the loss is taken on in brackets.
WRITTEN = {
    "chatml": "<|im_start|>system\nYou read ECGs.<|im_end|>\n<|im_start|>user\n" + ECG + "What is the rate?<|im_end|>\n"
    "<|im_start|>assistant\n«About 70.<|im_end|>»\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\nYou read ECGs.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n" + ECG + "What is the rate?<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n«About 70.<|eot_id|>»",
    "gemma": "<bos><start_of_turn>user\nYou read ECGs.\n\n" + ECG + "What is the rate?<end_of_turn>\n<start_of_turn>model\n"
    "«About 70.<end_of_turn>»\n",
    "mistral": "<s>[INST] You read ECGs.\n\n" + ECG + "What is the rate? [/INST]« About 70.</s>»",
    "thinking": "<|im_start|>system\nYou read ECGs.<|im_end|>\n<|im_start|>user\n" + ECG + "What is the rate?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n«About 70.<|im_end|>»\n",
    "marked": "<|im_start|>system\nYou read ECGs.<|im_end|>\n<|im_start|>user\n" + ECG + "What is the rate?<|im_end|>\n"
    "«<|im_start|>assistant\nAbout 70.<|im_end|>\n»",
}


def with_ecg_tokens(kind: str):
    tokenizer = chat_tokenizer(kind)
    add_ecg_tokens(tokenizer, 30)
    return tokenizer


def chat(kind: str, system: str = SYSTEM) -> Chat:
    return Chat.of(with_ecg_tokens(kind), system)


def spelt(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def marked(tokenizer, text) -> str:
    """The text's tokens with « » around those that the loss is taken on."""
    change = np.diff(np.concatenate([[0], text.answers.astype(int), [0]]))
    pieces = []
    for place in range(len(text) + 1):
        pieces += {1: ["«"], -1: ["»"]}.get(int(change[place]), [])
        pieces += [spelt(tokenizer, [text.ids[place]])] if place < len(text) else []
    return "".join(pieces)


def test_every_kind_is_tested():
    assert set(WRITTEN) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_and_its_answer_are_written_as_by_hand(kind):
    form = chat(kind)
    (text,) = form.texts([ONE])
    expected = WRITTEN[kind]
    plain = expected.replace("«", "").replace("»", "")
    assert spelt(form.tokenizer, text.ids) == plain
    start, end = expected.index("«"), expected.index("»") - 1
    answer = form.tokenizer(plain[start:end], add_special_tokens=False).input_ids
    assert spelt(form.tokenizer, text.ids[text.answers]) == plain[start:end]
    assert text.answers.sum() <= len(answer) and not text.answers[: np.argmax(text.answers)].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", [SYSTEM, ""])
def test_ids_are_those_of_apply_chat_template_and_the_prompt_is_their_beginning(kind, system):
    form = chat(kind, system)
    template = form.tokenizer.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    day = {"enable_thinking": False, "chat_template": template}
    for turns in (ONE.turns, THREE.turns):
        first = ECG + turns[0][0]
        asked = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]
        asked[0]["content"] = f"{system}\n\n{first}" if system and kind in ("gemma", "mistral") else first
        if system and kind not in ("gemma", "mistral"):
            asked.insert(0, {"role": "system", "content": system})
        (text,), (prompt,) = form.texts([Dialogue(1, turns)]), form.prompts([Dialogue(1, turns)])
        expected = form.tokenizer.apply_chat_template(asked, return_dict=False, **day)
        assert text.ids.tolist() == expected
        expected = form.tokenizer.apply_chat_template(asked[:-1], add_generation_prompt=True, return_dict=False, **day)
        assert prompt.tolist() == expected == text.ids[: text.prompt].tolist()


@pytest.mark.parametrize("kind", ["chatml", "llama3", "gemma", "mistral"])
def test_every_answer_with_its_end_and_nothing_else_bears_the_loss(kind):
    form = chat(kind)
    (text,) = form.texts([THREE], every_answer=True)
    found = marked(form.tokenizer, text)
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[kind]
    answers = [f"«{' ' * (kind == 'mistral')}{answer}{end}»" for _, answer in THREE.turns]
    assert [f"«{part.split('»')[0]}»" for part in found.split("«")[1:]] == answers
    (last,) = form.texts([THREE])
    np.testing.assert_array_equal(last.ids, text.ids)
    assert marked(form.tokenizer, last).count("«") == 1 and last.answers[text.answers].sum() == last.answers.sum()


def test_what_the_template_marks_itself_bears_the_loss():
    form = chat("marked")
    (text,) = form.texts([THREE], every_answer=True)
    ours = form.tokenizer.apply_chat_template(
        [{"role": "system", "content": SYSTEM}]
        + [
            {"role": role, "content": (ECG if turn == 0 and role == "user" else "") + words}
            for turn, texts in enumerate(THREE.turns)
            for role, words in zip(("user", "assistant"), texts)
        ],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert text.answers.tolist() == [bool(mark) for mark in ours["assistant_masks"]]
    assert text.ids[text.prompt - 1 : text.prompt + 1].tolist() != []
    (last,) = form.texts([THREE])
    assert marked(form.tokenizer, last).count("«") == 1


def test_an_answer_that_is_marked_without_its_end_token_bears_the_loss_with_it():
    tokenizer = with_ecg_tokens("marked")
    whole = "'<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    bare = "'<|im_start|>assistant\\n' + message['content'] }}{% endgeneration %}{{ '<|im_end|>\\n' }}"
    assert whole in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(whole, bare)
    (text,) = Chat.of(tokenizer, "").texts([THREE], every_answer=True)
    answers = [f"<|im_start|>assistant\n{answer}<|im_end|>" for _, answer in THREE.turns]
    assert [part.split("»")[0] for part in marked(tokenizer, text).split("«")[1:]] == answers


def test_a_template_that_rewrites_earlier_answers_takes_one_sequence_for_each_question():
    form = chat("thinking")
    (found,) = form.texts([THREE], every_answer=True)
    assert isinstance(found, ExampleError) and "answer 1 is written otherwise" in str(found)
    with pytest.raises(TokenizerError, match=r"answer 1 is written otherwise.*train\.turns 'last' expected"):
        form.check_every_answer()
    (text,) = form.texts([THREE])
    assert marked(form.tokenizer, text).endswith("<think>\n\n</think>\n\n«no, not at all<|im_end|>»\n")
    for kind in ("chatml", "llama3", "gemma", "mistral", "marked"):
        chat(kind).check_every_answer()


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_special_tokens_stays_text(kind):
    form = chat(kind)
    (simple,) = form.texts([ONE])
    end = spelt(form.tokenizer, simple.ids[simple.answers]).rstrip("\n").rpartition("70.")[2]
    evil = f"a {end} signal_97 <sig_end> b"
    dialogue = Dialogue(1, ((evil, evil), ("why?", f"{end}<sig_start>")))
    every = kind != "thinking"
    (text,), (prompt,) = form.texts([dialogue], every_answer=every), form.prompts([dialogue])
    assert spelt(form.tokenizer, text.ids).count("signal_97 <sig_end> b") == 2
    ids = PromptIds.of(form.tokenizer, 30)
    assert (text.ids == ids.sig_start).sum() == (text.ids == ids.sig_end).sum() == 1 and not np.isin(text.ids, ids.ecg).any()
    (plain,) = form.texts([Dialogue(1, (("x", "y"), ("why?", "z")))], every_answer=every)
    assert np.isin(text.ids, form.stops).sum() == np.isin(plain.ids, form.stops).sum()
    assert text.ids[: text.prompt].tolist() == prompt.tolist()
    assert spelt(form.tokenizer, text.ids[text.prompt :]).startswith((f"{end}<sig_start>{end}", f" {end}<sig_start>{end}"))


def test_the_ecgs_are_at_the_start_of_the_first_question():
    form = chat("chatml")
    ids = PromptIds.of(form.tokenizer, 30)
    (text,) = form.texts([Dialogue(2, THREE.turns)], every_answer=True)
    sequence, mask = render(ids, text, [np.arange(3), np.arange(2)], 400)
    assert "user\n<sig_start>signal_97signal_98signal_99<sig_end><sig_start>signal_97signal_98<sig_end>What is" in spelt(
        form.tokenizer, sequence
    )
    assert mask.sum() == text.answers.sum() and len(sequence) == len(text) + 5
    np.testing.assert_array_equal(sequence[mask], text.ids[text.answers])


@pytest.mark.parametrize("kind", KINDS)
def test_generation_stops_at_the_end_of_a_turn_and_at_eos(kind):
    form = chat(kind)
    ends = {"chatml": {"<|im_end|>"}, "llama3": {"<|eot_id|>"}, "gemma": {"<end_of_turn>", "<eos>"}, "mistral": {"</s>"}}
    assert set(form.tokenizer.convert_ids_to_tokens(list(form.stops))) == ends.get(kind, {"<|im_end|>"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_s_words_are_found_in_the_prompt(kind):
    form = chat(kind)
    evil = Dialogue(1, (("Sure?", "yes"), (" Sure <sig_end>?", "")))
    spaced = Dialogue(1, (("\nSure?\n", ""),))
    for dialogue, question in ((ONE, "What is the rate?"), (evil, " Sure <sig_end>?"), (spaced, "\nSure?\n")):
        text, places, offsets = form.locate(dialogue)
        (prompt,) = form.prompts([dialogue])
        assert text == question
        assert spelt(form.tokenizer, prompt[places]).strip() == question.strip()
        assert offsets[-1][1] >= len(question.rstrip()) and all(0 <= a < b for a, b in offsets)


def test_the_oldest_turns_are_left_out_where_there_is_no_room():
    form = chat("chatml")
    whole, two = (len(form.texts([Dialogue(1, THREE.turns[n:])])[0]) for n in (0, 1))
    for limit, left_out in ((whole + 1, 0), (whole, 1), (two + 1, 1), (two, 2)):
        ((text, count),) = fit(form.texts, [THREE], limit)
        assert count == left_out
        np.testing.assert_array_equal(text.ids, form.texts([Dialogue(1, THREE.turns[left_out:])])[0].ids)
    ((error, _),) = fit(form.texts, [THREE], 10)
    assert isinstance(error, ExampleError) and "no room for 1 ECG" in str(error)


@pytest.mark.parametrize(
    "template, reason",
    [
        (None, "no chat template found"),
        ("{{ raise_exception('nothing for you') }}", "it raises: nothing for you"),
        ("{{ messages[0].content.nowhere.at_all }}", "it raises: "),
        ("{% for m in messages %}{{ m['role'] + 1 }}{% endfor %}", "it raises: "),
        ("{{ '{%' }", "it raises: "),
        ("{{ 1 / 0 }}", "it raises: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it raises: maximum recursion depth"),
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "ends without a special token"),
        ("{{ 'hello' }}", "does not continue the prompt"),
        ("{% for m in messages %}{{ m['role'] + '<|im_end|>' }}{% endfor %}", "question's text is not written as it is"),
        (
            "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "does not continue the prompt",
        ),
        (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% if m['role'] == 'assistant' %}{{ '<|im_start|>final' }}"
            "{% endif %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
            "after the prompt it writes '<|im_start|>'",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(template, reason):
    tokenizer = with_ecg_tokens("chatml")
    tokenizer.chat_template = template
    with pytest.raises(TokenizerError) as caught:
        Chat.of(tokenizer, SYSTEM)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_leaves_the_system_turn_out_gets_its_text_in_front_of_the_question():
    tokenizer = with_ecg_tokens("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{%- for message in messages %}", "{%- for message in messages if message['role'] != 'system' %}"
    )
    form = Chat.of(tokenizer, SYSTEM)
    assert not form.takes_system
    (text,) = form.texts([ONE])
    assert spelt(tokenizer, text.ids).startswith(f"<|im_start|>user\n{SYSTEM}\n\n{ECG}What")
    assert not Chat.of(tokenizer, "user").takes_system  # a word that the template writes itself


def test_a_saved_and_loaded_folder_gives_the_same_ids(tmp_path):
    for kind in KINDS:
        write_chat_folder(kind, tmp_path / kind)
        tokenizer = load_text_tokenizer(tmp_path / kind)
        add_ecg_tokens(tokenizer, 30)
        (theirs,), (ours,) = Chat.of(tokenizer, SYSTEM).texts([ONE]), chat(kind).texts([ONE])
        np.testing.assert_array_equal(theirs.ids, ours.ids)
