"""How fast the ECG tokenizer is, compared with other libraries: `python -m benchmarks.tokenizer [--root=PTBXL] [--huge]`.

The corpus is the cleaned recordings of a PTB-XL folder, or synthetic ones without `--root`; larger corpora repeat them with
another gain and another start. Every row is measured in a process of its own, on one core. The other libraries come with
`pip install -e '.[bench]'`. `--huge` adds a corpus of 1.2 G symbols (minutes, and 1.2 GB on disk).
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.matching import Automaton
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.ecg.signal import clean
from ecgbyte_jax.ecg.symbols import Quantizer, spell
from ecgbyte_jax.ecg.synthetic import SAMPLE_RATE, random_heart, synthesize
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.run.console import peak_memory

SAMPLES, SEGMENT = 2500, 500  # at 250 Hz: of a recording of 10 s, of a segment of 2 s
HUGE = 40_000  # recordings
PUBLISHED = 200_000  # ECGs that the published tokenizer was trained on
ENCODED, FEW = 8192, 512  # segments; for the slow encoders

Encoded = tuple[float, float, list[np.ndarray]]  # symbols a second in a batch, seconds of one segment, ids of the first ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="a folder of PTB-XL")
    parser.add_argument("--records", type=int, nargs="+", default=[250, 1000, 4000], help="sizes of the corpora")
    parser.add_argument("--peer_records", type=int, default=1000, help="the largest corpus that `tokenizers` is trained on")
    parser.add_argument("--merges", type=int, default=3500, help="merges in training")
    parser.add_argument("--vocabulary", type=int, default=5000, help="merges in encoding")
    parser.add_argument("--huge", action="store_true", help="add a corpus of 1.2 G symbols")
    arguments = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # in the processes that measure
    sizes = sorted(arguments.records + [HUGE] * arguments.huge)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cleaned = alone(clean_recordings, arguments.root, folder)[0]
        machine = (
            f"{platform.machine()}, 1 core of {os.cpu_count()}, Python {platform.python_version()}, NumPy {np.__version__}"
        )
        print(f"{machine}, {time.strftime('%Y-%m-%d')}, {cleaned}\n", flush=True)
        for records in sizes:
            alone(write_corpus, folder, records)
        show_training(folder, sizes, arguments.merges, arguments.peer_records)
        show_encoding(folder, sizes[min(1, len(sizes) - 1)], arguments.vocabulary)
        print(f"Quantizing: {alone(quantize, folder)[0] / 1e6:.0f} M samples/s.")


def show_training(folder: Path, sizes: list[int], merges: int, peer_records: int) -> None:
    """Prints one line per corpus, and extrapolates the last one to the published corpus."""
    print(f"Training, {merges} merges:\n")
    print(
        "| symbols | this project | peak memory | bytes per symbol* | `tokenizers`, a lead a word | its peak memory | ratio |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for records in sizes:
        symbols = records * len(LEADS) * SAMPLES
        seconds, memory, idle = alone(train, folder, records, merges)
        fixed = idle + 8 * (27 + merges) ** 2  # Python and the table of counts
        row = [f"{symbols / 1e6:.0f} M", f"{seconds:.1f} s", f"{memory / 1e9:.2f} GB", f"{(memory - fixed) / symbols:.1f}"]
        if records <= peer_records:
            peer, peer_memory, _ = alone(train_with_tokenizers, folder, records, merges)
            row += [f"{peer:.1f} s", f"{peer_memory / 1e9:.2f} GB", f"{peer / seconds:.0f}"]
        print(f"| {' | '.join(row + ['-'] * (7 - len(row)))} |", flush=True)
    scale = PUBLISHED / records
    size = f"{PUBLISHED * len(LEADS) * SAMPLES / 1e9:.0f} G symbols ({PUBLISHED} ECGs of 10 s)"
    cost = f"{seconds * scale / 60:.0f} min and {(fixed + (memory - fixed) * scale) / 1e9:.0f} GB"
    print(f"\n* Over the {fixed / 1e9:.1f} GB that Python and the table of counts take.", end=" ")
    print(f"In proportion to the last line, {size} take {cost}.\n", flush=True)


def show_encoding(folder: Path, records: int, merges: int) -> None:
    """Prints one line per encoder."""
    building, loading = alone(prepare_encoding, folder, records, merges)[0]
    print(f"Encoding {ENCODED} segments of {len(LEADS)} x {SEGMENT} symbols ({FEW} of them where slow), {merges} merges:\n")
    print("| encoder | symbols/s | one segment | ratio | same ids |")
    print("| --- | ---: | ---: | ---: | --- |")
    jobs = {
        "this project": encode,
        "`tokenizers`, our merges": encode_with_tokenizers,
        "`tiktoken`, our tokens as ranks": encode_with_tiktoken,
        "a trie in plain Python": encode_with_a_trie,
    }
    first, ours = 0.0, []
    for name, job in jobs.items():
        rate, single, ids = alone(job, folder)[0]
        first, ours = first or rate, ours or ids
        same = np.mean([np.array_equal(a, b) for a, b in zip(ids, ours)])
        print(
            f"| {name} | {rate / 1e6:.1f} M | {single * 1e3:.2f} ms | {first / rate:.0f} | {same:.0%} of segments |", flush=True
        )
    print(f"\nBuilding the automaton of {merges} merges: {building:.2f} s; reading its file: {loading:.3f} s.")


def alone(job: Callable, *arguments: object) -> tuple:
    """(result of the job, peak memory of its process in bytes, peak memory before it), in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (job, arguments))


def _measured(job: Callable, arguments: tuple) -> tuple:
    before = peak_memory()
    return job(*arguments), peak_memory(), before


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The best of several runs, since the machine also does other work."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def clean_recordings(root: str | None, folder: Path) -> str:
    """Writes float32 [recordings, 12, 2500] in mV; unusable recordings are counted and left out."""
    usable, left_out = [], 0
    for record in _recordings(root):
        try:
            usable.append(clean(record()).astype(np.float32))
        except RecordError:
            left_out += 1
    np.save(folder / "base.npy", np.stack(usable))
    return f"{len(usable)} {'PTB-XL' if root else 'synthetic'} recordings, {left_out} left out as unusable"


def _recordings(root: str | None) -> Iterator[Callable[[], Record]]:
    if root:
        for header in sorted((Path(root) / "records500").rglob("*.hea")):
            yield lambda path=header.with_suffix(""): read_record(path)
        return
    rng = np.random.default_rng(0)
    for _ in range(400):
        signal = synthesize(random_heart(rng), rng) / np.float32(1000)
        yield lambda signal=signal: Record(signal, SAMPLE_RATE, LEADS)


def write_corpus(folder: Path, records: int) -> None:
    """Symbols uint8 [records, 12, 2500] in a file that can be memory-mapped."""
    base, rng = np.load(folder / "base.npy"), np.random.default_rng(0)
    quantizer = Quantizer.fit([base])
    shape = records, len(LEADS), SAMPLES
    corpus = np.lib.format.open_memmap(folder / f"{records}.npy", mode="w+", dtype=np.uint8, shape=shape)
    for number in range(records):
        signal = base[number % len(base)]
        if number >= len(base):
            signal = np.roll(signal, rng.integers(SAMPLES), axis=1) * rng.uniform(0.8, 1.25)
        corpus[number] = quantizer.encode(signal)
    corpus.flush()


def quantize(folder: Path) -> float:
    """Samples a second."""
    signal = np.load(folder / "base.npy").astype(np.float64)
    quantizer = Quantizer.fit([signal])
    return signal.size / _seconds(lambda: quantizer.encode(signal))


def train(folder: Path, records: int, merges: int) -> float:
    """Seconds."""
    corpus = np.load(folder / f"{records}.npy", mmap_mode="r")
    return _seconds(lambda: BPE.train(corpus, merges), repeats=1)


def train_with_tokenizers(folder: Path, records: int, merges: int) -> float:
    """Seconds of Hugging Face's trainer, which trains on words: each lead is one."""
    from tokenizers import Tokenizer, models, trainers

    corpus = np.load(folder / f"{records}.npy", mmap_mode="r")
    letters = [chr(ord("a") + letter) for letter in range(26)]
    trainer = trainers.BpeTrainer(vocab_size=26 + merges, initial_alphabet=letters, show_progress=False)
    words = (spell(lead) for record in corpus for lead in record)
    return _seconds(lambda: Tokenizer(models.BPE()).train_from_iterator(words, trainer), repeats=1)


def prepare_encoding(folder: Path, records: int, merges: int) -> tuple[float, float]:
    """Trains the encoders' merges and writes the segments' symbols uint8 [segments, 6000].

    Returns the seconds to build the automaton and to read it.
    """
    base = np.load(folder / "base.npy")
    symbols = Quantizer.fit([base]).encode(base).reshape(len(base), len(LEADS), -1, SEGMENT).swapaxes(1, 2)
    np.save(folder / "segments.npy", np.resize(symbols, (ENCODED, len(LEADS) * SEGMENT)))
    bpe = BPE.train(np.load(folder / f"{records}.npy", mmap_mode="r"), merges)
    np.save(folder / "merges.npy", bpe.merges)
    bpe.save_automaton(folder / "automaton.npz")
    return _seconds(lambda: Automaton.of(bpe.tokens)), _seconds(lambda: bpe.load_automaton(folder / "automaton.npz"))


def _prepared(folder: Path) -> tuple[BPE, np.ndarray]:
    merges = np.load(folder / "merges.npy")
    return BPE.of_merges(merges, np.ones(len(merges))), np.load(folder / "segments.npy")


def _encoded(single: Callable, batch: Callable, texts: Sequence) -> Encoded:
    single(texts[0])  # builds the encoder
    seconds = np.median([_seconds(lambda text=text: single(text)) for text in texts[:100]])
    rate = sum(map(len, texts)) / _seconds(lambda: batch(texts))
    return rate, float(seconds), [np.array(ids) for ids in batch(texts[:FEW])]


def encode(folder: Path) -> Encoded:
    bpe, segments = _prepared(folder)
    return _encoded(bpe.encode, bpe.encode_batch, segments)


def encode_with_tokenizers(folder: Path) -> Encoded:
    """Hugging Face's BPE replays the merges, so that its ids differ."""
    from tokenizers import Tokenizer, models

    bpe, segments = _prepared(folder)
    names = [spell(token) for token in bpe.tokens]
    merges = [(names[left], names[right]) for left, right in bpe.merges.tolist()]
    tokenizer = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=merges, cache_capacity=0))

    def single(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    return _encoded(single, lambda texts: list(map(single, texts)), [spell(row) for row in segments[:FEW]])


def encode_with_tiktoken(folder: Path) -> Encoded:
    """tiktoken also replays the merges, in the order of the tokens' ranks."""
    import tiktoken

    bpe, segments = _prepared(folder)
    ranks = {spell(token).encode(): id for id, token in enumerate(bpe.tokens)}
    single = tiktoken.Encoding("ecg", pat_str="[a-z]+", mergeable_ranks=ranks, special_tokens={}).encode_ordinary
    return _encoded(single, lambda texts: list(map(single, texts)), [spell(row) for row in segments[:FEW]])


def encode_with_a_trie(folder: Path) -> Encoded:
    """The published longest match, as a loop over a trie."""
    bpe, segments = _prepared(folder)
    root: dict = {}
    for id, token in enumerate(bpe.tokens):
        node = root
        for symbol in token.tolist():
            node = node.setdefault(symbol, {})
        node["id"] = id

    def single(row: np.ndarray) -> list[int]:
        text, ids, start = row.tolist(), [], 0
        while start < len(text):
            node, at = root, start
            while at < len(text) and text[at] in node:
                node, at = node[text[at]], at + 1
                if "id" in node:
                    longest, end = node["id"], at
            ids.append(longest)
            start = end
        return ids

    return _encoded(single, lambda rows: list(map(single, rows)), segments[:FEW])


if __name__ == "__main__":
    main()
