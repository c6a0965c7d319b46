"""Users' own recordings: the same signal from any file format, and refusals that say what to do."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ecgbyte_jax.ecg.formats.own import read_own
from ecgbyte_jax.ecg.formats.table import _without_empty_ends
from ecgbyte_jax.ecg.plausible import check_limb_leads, check_plausible
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.errors import RecordError


def read(*about, **more) -> Record:
    """The recording alone, without the notes."""
    return read_own(*about, **more).record


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
        read(stem),
        read(f"{stem}.hea"),
        read(write_csv(tmp_path / "a.csv", signal, names), 500),
        read(write_csv(tmp_path / "b.csv", np.concatenate([times, signal]), ["Time", *names]), 500),
        read(write_csv(tmp_path / "c.csv", signal, None), 500, names),
        read(tmp_path / "a.npy", 500, names),
        read(tmp_path / "b.npy", 500, names, "uV"),
    ]
    for reading in records:
        assert reading.sample_rate == 500 and set(reading.leads) == set(LEADS)
        for lead in LEADS:
            np.testing.assert_allclose(
                reading.signal[reading.leads.index(lead)], known.signal[known.leads.index(lead)], atol=1e-5
            )


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
    np.save(tmp_path / "flat.npy", np.where(np.arange(12)[:, None] < 5, known.signal, 0.5))
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
        ((tmp_path / "flat.npy", 500, names), f"most leads are flat in {known.signal.shape[1]} samples"),
        ((tmp_path / "zip.npy", 500, names), "a ZIP archive found"),
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
        ((tmp_path / "nothing.csv", 500), "no such recording"),
    ):
        with pytest.raises(RecordError, match=message) as caught:
            read(*arguments)
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
        read(path)


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
    assert read(path, 500).leads == known.leads
    with pytest.raises(RecordError, match=f"column '{re.escape(name)}' implies .* Hz, --sample_rate 1000 Hz"):
        read(path, 1000)


@pytest.mark.parametrize("name", ["", "sample"])
def test_a_column_that_counts_samples_is_dropped(record, tmp_path, name):
    """pandas writes one without a name."""
    known, _ = record
    count = np.arange(known.signal.shape[1])
    assert read(with_column(tmp_path / "t.csv", known, name, count), 500).leads == known.leads
    with pytest.raises(RecordError, match=f"column '{name}' implies"):
        read(with_column(tmp_path / "t.csv", known, name, 3 * count), 500)


def test_times_in_an_array_are_checked_too(record, tmp_path):
    known, _ = record
    np.save(tmp_path / "t.npy", np.concatenate([np.arange(known.signal.shape[1])[None] / 500, known.signal]))
    assert read(tmp_path / "t.npy", 500, ["time", *known.leads]).leads == known.leads
    assert read(tmp_path / "t.npy", 0, ["time", *known.leads]).sample_rate == 500
    with pytest.raises(RecordError, match="column 'time' implies 500 Hz, --sample_rate 250 Hz"):
        read(tmp_path / "t.npy", 250, ["time", *known.leads])


def test_other_columns_are_not_time(record, tmp_path):
    """A trigger, a count of beats and a flat line."""
    known, _ = record
    beats = np.arange(known.signal.shape[1]) // 400
    extra = np.stack([beats > 5, beats, 0 * beats])
    path = write_csv(tmp_path / "t.csv", np.concatenate([extra, known.signal]), ["trigger", "beat", "resp", *known.leads])
    assert read(path, 500).leads == ("trigger", "beat", "resp", *known.leads)


@pytest.mark.parametrize("start", [0, 1])
def test_a_header_of_column_numbers_is_not_a_sample(record, tmp_path, start):
    """As pandas writes an array."""
    known, _ = record
    path = write_csv(tmp_path / "n.csv", known.signal, [str(i + start) for i in range(12)])
    np.testing.assert_allclose(read(path, 500, known.leads).signal, known.signal, atol=1e-5)
    with pytest.raises(RecordError, match="neither a header nor --leads names the columns"):
        read(path, 500)


CHEST = LEADS[6:]


def a_beat_a_second(samples=1000, rate=500):
    """[12, samples] in mV that obeys Einthoven's law: I and II and the chest leads differ in shape."""
    seconds = np.arange(samples) / rate
    waves = [np.exp(-((((seconds - at) % 1.0) - 0.5) ** 2) / 2 / 0.012**2) for at in (0.0, 0.02, 0.3)]
    eight = np.random.default_rng(3).uniform(0.3, 1.2, (8, 3)) @ waves
    one, two = eight[:2]
    return np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, *eight[2:]])


def written(path, header, rows, delimiter=",", mark="."):
    """Rows of numbers with six decimals."""
    lines = [delimiter.join(header), *(delimiter.join(f"{value:.6f}".replace(".", mark) for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("ends", [("", "", ""), (";", ";", ";" * 12), ("", ";", "")], ids=["none", "all", "rows"])
def test_empty_rows_and_columns_that_excel_writes_are_not_read(record, tmp_path, ends):
    known, _ = record
    rows = [";".join(f"{v:.6f}" for v in row) for row in known.signal.T]
    header, row_end, last = ends
    lines = [";".join(known.leads) + header, *(row + row_end for row in rows), last, last]
    (tmp_path / "a.csv").write_text("\r\n".join(lines))
    np.testing.assert_allclose(read(tmp_path / "a.csv", 500).signal, known.signal, atol=1e-6)


def test_many_empty_rows_take_no_time_and_a_table_of_nothing_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("," * 11 + "\n" + "," * 11 + "\n")
    with pytest.raises(RecordError, match="no row of samples found"):
        read(tmp_path / "a.csv", 500)
    assert _without_empty_ends([["a", "b"], ["1", "2"], *[["", ""]] * 300_000]) == [["a", "b"], ["1", "2"]]
    assert _without_empty_ends([["", ""], ["1", "2", "3", "", "", ""]]) == [[], ["1", "2", "3", ""]]


def test_a_missing_value_in_the_last_column_is_not_taken_for_an_empty_column(record, tmp_path):
    known, _ = record
    rows = [";".join(f"{v:.6f}" for v in row[:-1]) + ";" for row in known.signal.T]
    (tmp_path / "a.csv").write_text("\n".join([";".join(known.leads), *rows]))
    with pytest.raises(RecordError, match="row 2"):
        read(tmp_path / "a.csv", 500)
    assert _without_empty_ends([["a", "b"], ["1", ""]]) == [["a", "b"], ["1", ""]]


def test_a_header_without_samples_is_refused(record, tmp_path):
    known, _ = record
    (tmp_path / "header.csv").write_text(",".join(known.leads) + "\n")
    with pytest.raises(RecordError, match="no row of samples found"):
        read(tmp_path / "header.csv", 500)


def test_a_file_of_another_kind_is_called_that(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(RecordError, match=r"a\.dcm: \.dcm found, which is not read; a WFDB record"):
        read(tmp_path / "a.dcm")
    (tmp_path / "r.dat").write_bytes(b"x")
    with pytest.raises(RecordError, match=r"r\.dat: its header r\.hea is missing"):
        read(tmp_path / "r.dat")


def test_semicolons_and_decimal_commas_by_hand(tmp_path):
    """As a German or French Excel writes them, in its own encoding."""
    signal = a_beat_a_second()
    path = written(tmp_path / "a.csv", [f"{lead} (\u00b5V)" for lead in LEADS], 1000 * signal.T, ";", ",")
    path.write_bytes(path.read_text().encode("cp1252"))
    assert path.read_bytes().splitlines()[1].startswith(f"{1000 * signal[0, 0]:.6f}".replace(".", ",").encode() + b";")
    own = read_own(path, 500)
    np.testing.assert_allclose(own.record.signal, signal, atol=1e-6)
    assert own.record.leads == LEADS and own.notes[0] == "units: uV, as the columns' names say"


@given(
    delimiter_and_mark=st.sampled_from([(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ",")]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    hint=st.booleans(),
    quoted=st.booleans(),
    decimals=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_every_dialect_reads_the_same_samples(
    delimiter_and_mark, ending, encoding, hint, quoted, decimals, seed, tmp_path_factory
):
    delimiter, mark = delimiter_and_mark
    numbers = np.random.default_rng(seed).normal(0, 1, (8, 40))
    cells = [[f"{value:.{decimals}f}" for value in row] for row in numbers.T]
    thousands = decimals == 3 and not any(cell.lstrip("-").startswith("0") for row in cells for cell in row)
    assume(not thousands)
    header = ["I", "II", *CHEST]
    rows = [header, *([cell.replace(".", mark) for cell in row] for row in cells)]
    lines = [delimiter.join(f'"{cell}"' if quoted else cell for cell in row) for row in rows]
    path = tmp_path_factory.mktemp("dialect") / "a.csv"
    path.write_bytes(ending.join([f"sep={delimiter}"] * hint + lines).encode(encoding))
    reading = read(path, 500)
    np.testing.assert_array_equal(reading.signal[:8], np.array(cells, float).T.astype(np.float32))


@pytest.mark.parametrize(
    "line, message",
    [
        (",".join(["0,12"] * 12), "12 numbers expected; separate columns with decimal commas by semicolons"),
        (",".join(['"0,12"'] * 12), "'0,12' found between commas"),
        (";".join(["1,234"] * 12), "'1,234' may have a decimal mark or a thousands separator"),
        ("\t".join(["1.234"] * 12), "'1.234' may have a decimal mark or a thousands separator"),
        (";".join(["1.234,5"] * 12), "12 numbers expected"),
        (";".join(["0,5"] * 6 + ["0.5"] * 6), "'0.5' and '0,5' found; use one decimal mark"),
        (";".join(["1_000"] * 12), "12 numbers expected"),
        ("\t;".join(["0.5"] * 12), "tabs and semicolons found in every line"),
    ],
)
def test_an_ambiguous_file_is_refused(tmp_path, line, message):
    delimiter = next((mark for mark in ("\t;", ";", "\t") if mark in line), ",")
    (tmp_path / "a.csv").write_text("\n".join([delimiter.join(LEADS), line, line]) + "\n")
    with pytest.raises(RecordError, match=re.escape(message)):
        read(tmp_path / "a.csv", 500)


@pytest.mark.parametrize(
    "spelling",
    ["Lead {}", "LEAD_{}", "lead-{}", "{} (mV)", "{} [mV]", "{}_mV", "ECG {}", "MDC_ECG_LEAD_{}", "Lead {} (Einthoven)"],
)
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_leads_are_known_by_their_usual_names(tmp_path, spelling, case):
    path = written(tmp_path / "a.csv", [case(spelling.format(lead)) for lead in LEADS], a_beat_a_second().T)
    assert read(path, 500).leads == LEADS


@pytest.mark.parametrize("name", ["-aVR", "V7", "V3R", "IIII", "V1-V2", "1", "I2", "aV"])
def test_other_names_are_not_leads(tmp_path, name):
    path = written(tmp_path / "a.csv", [*LEADS[:11], name], a_beat_a_second().T)
    with pytest.raises(RecordError, match=r"leads \['V6'\] are missing"):
        read(path, 500)


@pytest.mark.parametrize(
    "names, units, message",
    [
        ({0: "I (uV)"}, "mV", "column 'I (uV)' is in uV, --units=mV; give --units=uV"),
        ({0: "I (uV)"}, "", "column 'I (uV)' has a unit, 'II' has none"),
        ({3: "aVR [adu]"}, "", "column 'aVR [adu]' has the unit 'adu', one of"),
        ({1: "Lead I"}, "", "columns 'I' and 'Lead I' are both lead I"),
    ],
)
def test_contradictions_in_the_names_are_refused(tmp_path, names, units, message):
    path = written(tmp_path / "a.csv", [names.get(i, lead) for i, lead in enumerate(LEADS)], a_beat_a_second().T)
    with pytest.raises(RecordError, match=re.escape(message)):
        read(path, 500, units=units)


def test_each_lead_has_its_own_unit(tmp_path):
    signal = a_beat_a_second()
    names = [f"{lead} (mV)" for lead in LEADS[:6]] + [f"{lead} [uV]" for lead in CHEST]
    path = written(tmp_path / "a.csv", ["trigger", *names], np.concatenate([signal[:1] > 0.5, signal[:6], 1000 * signal[6:]]).T)
    np.testing.assert_allclose(read(path, 500).signal[1:], signal, atol=1e-6)


@pytest.mark.parametrize("given", [("I", "II"), ("II", "III"), ("I", "III"), ("I", "II", "III")])
def test_missing_limb_leads_are_computed_with_a_note(tmp_path, given):
    """I = 0.5 and II = 0.8 mV give III = 0.3, aVR = -0.65, aVL = 0.1 and aVF = 0.55."""
    signal = a_beat_a_second()
    signal[:6, 7] = [0.5, 0.8, 0.3, -0.65, 0.1, 0.55]
    names = [*CHEST, *given]
    path = written(tmp_path / "a.csv", names, signal[[LEADS.index(name) for name in names]].T)
    own = read_own(path, 500)
    assert sorted(own.record.leads) == sorted(LEADS)
    np.testing.assert_allclose(own.record.signal[[own.record.leads.index(lead) for lead in LEADS]], signal, atol=3e-6)
    absent = [lead for lead in LEADS[:6] if lead not in given]
    assert own.notes[0].startswith(f"{', '.join(absent)} are computed from {given[0]} and {given[1]}: II = I + III")


def test_one_limb_lead_is_not_enough(tmp_path):
    path = written(tmp_path / "a.csv", ["II", *CHEST], a_beat_a_second()[[1, *range(6, 12)]].T)
    with pytest.raises(RecordError, match=r"'I', 'III', 'aVR', 'aVL', 'aVF'\] are missing.* two of I, II and III"):
        read(path, 500)


@pytest.mark.parametrize(
    "name, step, rate",
    [
        ("time (s)", 0.002, 500),
        ("Time", 0.002, 500),
        ("t", 4, 250),
        ("time_ms", 1, 1000),
        ("Zeit [ms]", 2, 500),
        ("us", 2000, 500),
        ("time", 2000, 500),
        ("temps (s)", 1 / 360, 360),
        ("", 0.004, 250),
    ],
)
def test_a_time_column_gives_the_rate(tmp_path, name, step, rate):
    signal = a_beat_a_second(rate=rate)
    path = written(tmp_path / "a.csv", [name, *LEADS], np.concatenate([7 + step * np.arange(1000)[None], signal]).T, "\t", ",")
    own = read_own(path)
    assert own.record.sample_rate == rate and own.record.leads == LEADS
    assert own.notes[0] == f"sample rate: {rate} Hz by column {name!r}"


@pytest.mark.parametrize(
    "name, times, message",
    [
        ("time", np.arange(1000), "column 'time' rises by 1, which may be samples or a time without its unit"),
        ("", 2 * np.arange(1000), "column '' rises by 2, which may be samples"),
        ("time", np.arange(1000) / 6000, "no time step of an ECG"),
        ("time", np.arange(1000) ** 2, "column 'time' does not rise evenly"),
        ("clock", np.arange(1000) / 500, "the sample rate is missing"),
    ],
)
def test_a_time_column_that_may_mean_several_rates_gives_none(tmp_path, name, times, message):
    path = written(tmp_path / "a.csv", [name, *LEADS], np.concatenate([times[None], a_beat_a_second()]).T)
    with pytest.raises(RecordError, match=f"{message}.*--sample_rate=500"):
        read(path)


def test_rounded_times_give_a_whole_rate(tmp_path):
    """360 Hz in whole milliseconds: 997 steps in 2770 ms are 359.93 Hz."""
    times = np.ceil(1000 * np.arange(998) / 360)
    signal = a_beat_a_second(998, 360)
    path = written(tmp_path / "a.csv", ["ms", *LEADS], np.concatenate([times[None], signal]).T)
    assert read(path).sample_rate == 360


@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "-1e308"])
@pytest.mark.filterwarnings("error")
def test_values_beyond_numbers_are_refused(tmp_path, value):
    row = ";".join(["0,5"] * 8)
    (tmp_path / "a.csv").write_text("\n".join([";".join(["I", "II", *CHEST]), row, row.replace("0,5", value, 1), row]))
    with pytest.raises(RecordError, match="not finite"):
        read(tmp_path / "a.csv", 500)


def test_time_columns_must_agree(tmp_path):
    times = np.arange(1000) / 500
    path = written(
        tmp_path / "a.csv", ["s", "ms", *LEADS], np.concatenate([times[None], 500 * times[None], a_beat_a_second()]).T
    )
    with pytest.raises(RecordError, match="column 'ms' implies 1000 Hz, 500 Hz by column 's'; one of them is wrong"):
        read(path)


def renamed(names):
    """A recording whose leads are called otherwise: pairs of a name and what it is called."""
    return Record(a_beat_a_second().astype(np.float32), 500.0, tuple(names.get(lead, lead) for lead in LEADS))


@pytest.mark.parametrize("one", LEADS[:6])
@pytest.mark.parametrize("other", LEADS[:6])
def test_swapped_names_of_limb_leads_are_refused_by_name(one, other):
    if one == other:
        assert check_limb_leads(renamed({}), "own") == ()
        return
    first, second = sorted((one, other), key=LEADS.index)
    with pytest.raises(RecordError, match=f"own: .* deviate by .* but 0.0% if the names {first} and {second} are swapped"):
        check_limb_leads(renamed({one: other, other: one}), "own")


def test_names_in_another_order_are_refused_by_name():
    order = ("I", "II", *CHEST, "III", "aVR", "aVL", "aVF")
    with pytest.raises(RecordError, match="if the leads named V3, V4, V5, V6 are III, aVR, aVL, aVF"):
        check_limb_leads(renamed(dict(zip(order, LEADS))), "own")


@pytest.mark.parametrize("place", range(6))
def test_a_limb_lead_upside_down_is_refused(place):
    record = renamed({})
    record.signal[place] *= -1
    with pytest.raises(RecordError, match=f"{LEADS[place]} is upside down"):
        check_limb_leads(record, "own")


def test_what_einthovens_law_cannot_see_passes():
    """Arm electrodes reversed, chest leads swapped, and I and III swapped where nothing else depends on them."""
    arms = a_beat_a_second()[[0, 2, 1, 3 + 1, 3, 5, *range(6, 12)]] * np.array([-1, *[1] * 11])[:, None]
    assert check_limb_leads(Record(arms.astype(np.float32), 500.0, LEADS), "own") == ()
    assert check_limb_leads(renamed({"V1": "V2", "V2": "V1"}), "own") == ()
    few = renamed({"I": "III", "III": "I"})
    kept = [0, 1, 2, *range(6, 12)]
    nine = Record(few.signal[kept], 500.0, tuple(few.leads[i] for i in kept))
    assert check_limb_leads(nine, "own") == ()
    with pytest.raises(RecordError, match=r"II and III are swapped, .* or I is upside down"):
        check_limb_leads(dataclasses.replace(nine, leads=("I", "III", "II", *CHEST)), "own")


def test_a_deviation_that_no_names_explain_is_a_note(tmp_path, rng):
    signal = a_beat_a_second(5000)
    signal[2] += rng.normal(0, 0.3, 5000)
    own = read_own(written(tmp_path / "a.csv", LEADS, signal.T), 500)
    assert any("no other names of the leads explain it" in note for note in own.notes)


def test_real_recordings_obey_einthovens_law_and_have_plausible_rates(shared):
    """Every eighth of PTB-XL's, CPSC 2018's, and both at half and twice the rate."""
    paths = sorted((shared / "data/ptbxl/records500").rglob("*.hea"))[::8] + sorted((shared / "data/cpsc2018").glob("*.hea"))
    suspected = {0.5: 0, 1.0: 0, 2.0: 0}
    for path in paths:
        own = read_own(path)
        suspected[1.0] += len(own.notes)
        for factor in (0.5, 2.0):
            try:
                suspected[factor] += len(check_plausible(dataclasses.replace(own.record, sample_rate=500 * factor), path))
            except RecordError:
                suspected[factor] += 1
    assert suspected[1.0] <= 1 and min(suspected[0.5], suspected[2.0]) > 0.85 * len(paths), suspected
