"""Text tokenizers in the forms of the families' instruct models: special tokens, merges and a chat template of each kind."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Does this ECG show sinus rhythm? yes no none",
    "You read ECGs. question answer What is the rate of this ECG? It is about 70 beats a minute.",
    "system user assistant model",
] * 3
_CHATML = """
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_LLAMA3 = """
{{- bos_token }}
{%- set day = strftime_now('%d %b %Y') %}
{%- if messages[0]['role'] == 'system' %}
{%- set system, rest = messages[0]['content'], messages[1:] %}{% else %}{% set system, rest = '', messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + day + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in rest %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
_GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else 'user' %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
_MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif %}
{%- endfor %}"""
# As Qwen 3's: an empty thought before the last answer alone, which is gone once another question follows.
_THINKING = """
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""
# Marks the answers itself, with their headers, as SmolLM3's does.
_MARKED = """
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' }}{% endgeneration %}
{%- else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# kind -> (special tokens, bos, eos, pad, template, whether its merges are those of SentencePiece)
KINDS = {
    "chatml": (_IM, None, "<|im_end|>", "<|endoftext|>", _CHATML, False),  # as Qwen 2.5's: no bos
    "llama3": (_LLAMA3_SPECIAL, "<|begin_of_text|>", "<|eot_id|>", None, _LLAMA3, False),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<pad>", _GEMMA, True),
    "mistral": (["<unk>", "<s>", "</s>"], "<s>", "</s>", None, _MISTRAL, True),
    "thinking": ([*_IM, "<think>", "</think>"], None, "<|im_end|>", "<|endoftext|>", _THINKING, False),
    "marked": (_IM, "<|im_start|>", "<|im_end|>", "<|endoftext|>", _MARKED, False),
}


def chat_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind, trained on a few words."""
    special, bos, eos, pad, template, sentencepiece = KINDS[kind]
    tokenizer = _sentencepiece(special) if sentencepiece else _byte_level(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )
    made.chat_template = template.lstrip("\n")
    return made


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _sentencepiece(special: list[str]) -> Tokenizer:
    """With spaces as part of words and single bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=special[0]))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*special, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def write_chat_folder(kind: str, folder: Path) -> PreTrainedTokenizerFast:
    """Saves a tokenizer of this kind; returns it."""
    tokenizer = chat_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    return tokenizer
