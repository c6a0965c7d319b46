"""Users' own recordings: the same signal from any file format, and refusals that say what to do."""

import dataclasses
import re

import numpy as np
import pytest

from ecgbyte_jax.ecg.formats import check_plausible, read_own
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.errors import RecordError


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> tuple[Record, object]:
    from ecgbyte_jax.corpora.demo import write_demo

    folder = tmp_path_factory.mktemp("own")
    write_demo(folder / "ptbxl", folder / "ecgqa", 1, seed=0)
    path = next((folder / "ptbxl").rglob("*_hr.hea")).with_suffix("")
    return read_record(path), path


def write_csv(path, signal, header):
    lines = [",".join(header)] if header else []
    path.write_text("\n".join(lines + [",".join(f"{v:.6f}" for v in row) for row in signal.T]) + "\n")
    return path


def write_npy_header(path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(96))


def test_wfdb_csv_and_npy_give_the_same_signal(record, tmp_path):
    known, stem = record
    shuffled = [11, *range(11)]
    signal, names = known.signal[shuffled], [known.leads[i].lower() for i in shuffled]
    np.save(tmp_path / "a.npy", signal)
    np.save(tmp_path / "b.npy", 1000 * signal.T)
    times = np.arange(signal.shape[1])[None] / 500
    records = [
        read_own(stem),
        read_own(f"{stem}.hea"),
        read_own(write_csv(tmp_path / "a.csv", signal, names), 500),
        read_own(write_csv(tmp_path / "b.csv", np.concatenate([times, signal]), ["Time", *names]), 500),
        read_own(write_csv(tmp_path / "c.csv", signal, None), 500, names),
        read_own(tmp_path / "a.npy", 500, names),
        read_own(tmp_path / "b.npy", 500, names, "uV"),
    ]
    for read in records:
        assert read.sample_rate == 500 and set(read.leads) == set(LEADS)
        for lead in LEADS:
            np.testing.assert_allclose(read.signal[read.leads.index(lead)], known.signal[known.leads.index(lead)], atol=1e-5)


def test_an_implausible_recording_is_refused_with_what_to_do(record, tmp_path):
    known, stem = record
    names = list(known.leads)
    np.save(tmp_path / "a.npy", known.signal)
    np.save(tmp_path / "uv.npy", 1000 * known.signal)
    np.save(tmp_path / "v.npy", known.signal / 1000)
    np.save(tmp_path / "nan.npy", np.where(known.signal > known.signal.max() - 1e-6, np.nan, known.signal))
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    text = write_csv(tmp_path / "a.csv", known.signal, names)
    plain = write_csv(tmp_path / "plain.csv", known.signal, None)
    timed = write_csv(
        tmp_path / "t.csv", np.concatenate([np.arange(known.signal.shape[1])[None] / 250, known.signal]), ["t", *names]
    )
    np.save(tmp_path / "empty.npy", np.zeros((12, 0)))
    np.savez(tmp_path / "zip.npz", known.signal)
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    write_npy_header(tmp_path / "huge.npy", "(12, 1000000000000)")
    write_npy_header(tmp_path / "beyond.npy", f"(12, {10**30})")
    write_npy_header(tmp_path / "open.npy", "((((")
    np.save(tmp_path / "seconds.npy", np.zeros((12, 50), "m8[s]"))
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + "0" * 140_000 + "\n")
    broken = tmp_path / "broken.csv"
    broken.write_text(",".join(names) + "\n" + ",".join(["0"] * 12) + "\n" + ",".join(["x"] * 12) + "\n")
    for arguments, message in (
        ((tmp_path / "a.npy", 0, names), "--sample_rate=500"),
        ((tmp_path / "a.npy", 500), "--leads=I,II,III"),
        ((tmp_path / "a.npy", 500, names[:11]), "for 11 leads"),
        ((tmp_path / "uv.npy", 500, names), "looks like microvolts: give --units=uV"),
        ((tmp_path / "v.npy", 500, names), "looks like volts: give --units=V"),
        ((tmp_path / "nan.npy", 500, names), "not finite"),
        ((tmp_path / "object.npy", 500, names), "not readable as an NPY"),
        ((tmp_path / "empty.npy", 500, names), "no samples found"),
        ((tmp_path / "zip.npy", 500, names), "not readable as an NPY"),
        ((tmp_path / "huge.npy", 500, names), "not readable as an NPY"),
        ((tmp_path / "beyond.npy", 500, names), "not readable as an NPY"),
        ((tmp_path / "open.npy", 500, names), "not readable as an NPY"),
        ((tmp_path / "seconds.npy", 500, names), "of timedelta64"),
        ((tmp_path / "a.npy", 5e8, names), "1 to 100000 expected"),
        ((tmp_path / "a.npy", np.nan, names), "1 to 100000 expected"),
        ((tmp_path / "wide.csv", 500), "field larger than field limit"),
        ((tmp_path / "a.npy", 500, [*names[:11], "X"]), r"leads \['V6'\] are missing"),
        ((text, 0), "--sample_rate=500"),
        ((text, 500, names), "omit --leads"),
        ((plain, 500), "neither a header nor --leads"),
        ((timed, 500), "column 't' implies 250 Hz"),
        ((broken, 500), r"broken.csv, row 3: 'x,x"),
        ((stem, 500), "its header gives"),
        ((tmp_path / "nothing",), "no such recording"),
        ((tmp_path / "nothing.csv", 500), "no such file"),
    ):
        with pytest.raises(RecordError, match=message) as caught:
            read_own(*arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [100, 2500])
def test_a_rate_at_which_no_heart_beats_is_refused(rate):
    """75 beats per minute at 500 Hz, declared at other rates."""
    seconds = np.arange(5000) / 500
    beat = np.exp(-(((seconds[:, None] - np.arange(0.4, 10, 0.8)) / 0.02) ** 2)).sum(axis=1)
    signal = (np.linspace(0.5, 1.5, 12)[:, None] * beat).astype(np.float32)
    check_plausible(Record(signal, 500.0, LEADS), "ok")
    with pytest.raises(RecordError, match=f"at {rate} Hz the heart would beat .* so the rate is wrong"):
        check_plausible(Record(signal, float(rate), LEADS), "wrong")


def test_rates_of_real_recordings_pass_and_most_wrong_ones_do_not(shared):
    paths = sorted((shared / "data/ptbxl/records500").rglob("*.hea"))[::8]
    refused = {0.2: 0, 1.0: 0, 5.0: 0}
    for path in paths:
        original = read_record(path)
        for factor in refused:
            try:
                check_plausible(dataclasses.replace(original, sample_rate=500 * factor), path)
            except RecordError:
                refused[factor] += 1
    assert refused[1.0] == 0
    assert refused[0.2] > 0.9 * len(paths) and refused[5.0] > 0.6 * len(paths), refused


def test_synthetic_recordings_with_noise_pass(tmp_path):
    from ecgbyte_jax.corpora.demo import write_demo

    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 60, seed=0)
    for path in sorted((tmp_path / "ptbxl").rglob("*_hr.hea")):
        read_own(path)


def with_column(path, record, name, values):
    return write_csv(path, np.concatenate([values[None], record.signal]), [name, *record.leads])


@pytest.mark.parametrize(
    "name, factor, places",
    [("Time (s)", 1, 6), ("sec", 1, 3), ("time[ms]", 1000, 0), ("timestamp", 1000, 1), ("clock", 1e6, 0)],
)
def test_a_time_column_must_match_the_rate_and_is_dropped(record, tmp_path, name, factor, places):
    """In s, ms or us, from any start, and rounded."""
    known, _ = record
    times = np.round(np.arange(known.signal.shape[1]) / 500 * factor + 3, places)
    path = with_column(tmp_path / "t.csv", known, name, times)
    assert read_own(path, 500).leads == known.leads
    with pytest.raises(RecordError, match=f"column '{re.escape(name)}' implies .* Hz, --sample_rate 1000 Hz"):
        read_own(path, 1000)


@pytest.mark.parametrize("name", ["", "sample"])
def test_a_column_that_counts_samples_is_dropped(record, tmp_path, name):
    """pandas writes one without a name."""
    known, _ = record
    count = np.arange(known.signal.shape[1])
    assert read_own(with_column(tmp_path / "t.csv", known, name, count), 500).leads == known.leads
    with pytest.raises(RecordError, match=f"column '{name}' implies"):
        read_own(with_column(tmp_path / "t.csv", known, name, 3 * count), 500)


def test_times_in_an_array_are_checked_too(record, tmp_path):
    known, _ = record
    np.save(tmp_path / "t.npy", np.concatenate([np.arange(known.signal.shape[1])[None] / 500, known.signal]))
    assert read_own(tmp_path / "t.npy", 500, ["time", *known.leads]).leads == known.leads
    with pytest.raises(RecordError, match="column 'time' implies 500 Hz, --sample_rate 250 Hz"):
        read_own(tmp_path / "t.npy", 250, ["time", *known.leads])


def test_other_columns_are_not_time(record, tmp_path):
    """A trigger, a count of beats and a flat line."""
    known, _ = record
    beats = np.arange(known.signal.shape[1]) // 400
    extra = np.stack([beats > 5, beats, 0 * beats])
    path = write_csv(tmp_path / "t.csv", np.concatenate([extra, known.signal]), ["trigger", "beat", "resp", *known.leads])
    assert read_own(path, 500).leads == ("trigger", "beat", "resp", *known.leads)


@pytest.mark.parametrize("start", [0, 1])
def test_a_header_of_column_numbers_is_not_a_sample(record, tmp_path, start):
    """As pandas writes an array."""
    known, _ = record
    path = write_csv(tmp_path / "n.csv", known.signal, [str(i + start) for i in range(12)])
    np.testing.assert_allclose(read_own(path, 500, known.leads).signal, known.signal, atol=1e-5)
    with pytest.raises(RecordError, match="neither a header nor --leads names the columns"):
        read_own(path, 500)
