"""The text tokenizer: from a Hugging Face folder or trained on the corpus, with the ECG tokens added.

transformers takes two seconds to import, so it is imported where needed; preparation workers do not need it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ecgbyte_jax.ecg.published import ecg_names
from ecgbyte_jax.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIG_START, SIG_END, PAD = "<sig_start>", "<sig_end>", "<pad>"
_BOS, _EOS = "<bos>", "<eos>"


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE (without unknown tokens) of at most `vocab_size` tokens on `texts`."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, _BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    make_tokenizer: Any = PreTrainedTokenizerFast
    return make_tokenizer(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def load_text_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of any Hugging Face folder; raises TokenizerError if it is missing or damaged."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, Path(folder))


def load_run_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer that a run has saved, whose tokenizer.json holds all of it; raises as `load_text_tokenizer` does.

    AutoTokenizer would first import PyTorch, where that is installed.
    """
    from transformers import PreTrainedTokenizerFast

    return _load(PreTrainedTokenizerFast, folder)


def _load(kind: Any, folder: Path) -> "PreTrainedTokenizerFast":
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder}: no tokenizer.json or tokenizer_config.json found")
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:  # a JSONDecodeError is a ValueError
        raise TokenizerError(f"{folder}: not readable as a text tokenizer: {error}") from error


def load_encoder(file: Path) -> Tokenizer:
    """Loads a saved `tokenizer.json` for `encode_texts`."""
    return literal(Tokenizer.from_file(str(file)))


def literal(encoder: Tokenizer) -> Tokenizer:
    """The same tokenizer, so that it neither pads nor cuts, and takes the spelling of a special token for plain text."""
    encoder.no_padding()
    encoder.no_truncation()
    encoder.encode_special_tokens = True
    return encoder


def encode_texts(encoder: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Encodes texts as int32 [n] each, without bos and eos; the spelling of a special token is treated as plain text."""
    return [np.array(encoding.ids, np.int32) for encoding in encoder.encode_batch(texts, add_special_tokens=False)]


def add_ecg_tokens(tokenizer: "PreTrainedTokenizerFast", ecg_vocab_size: int) -> None:
    """Adds `signal_<published id>` for every ECG token, `<sig_start>`, `<sig_end>`, and eos and pad where it has none."""
    tokenizer.add_tokens([*ecg_names(ecg_vocab_size), SIG_START, SIG_END], special_tokens=True)
    missing = {"eos_token": (tokenizer.eos_token_id, _EOS), "pad_token": (tokenizer.pad_token_id, PAD)}
    tokenizer.add_special_tokens({name: token for name, (id, token) in missing.items() if id is None})
