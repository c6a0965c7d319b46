import re

import numpy as np
import pytest
import wfdb

from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.errors import RecordError


@pytest.fixture
def written(tmp_path):
    """A record of two leads with a gain of 1000 per mV; its path without extension."""
    samples = np.array([[0, 100], [1500, -2000], [-7, 32]])
    wfdb.wrsamp(
        "r1", fs=500, units=["mV", "mV"], sig_name=["AVR", "V1"], d_signal=samples, fmt=["16", "16"],
        adc_gain=[1000.0, 1000.0], baseline=[0, 0], write_dir=str(tmp_path),
    )  # fmt: skip
    return tmp_path / "r1"


@pytest.mark.parametrize("ending", ["", ".hea", ".dat"])
def test_record_is_read_in_mv_with_named_leads(written, ending):
    record = read_record(str(written) + ending)
    np.testing.assert_allclose(record.signal, [[0, 1.5, -0.007], [0.1, -2, 0.032]], rtol=1e-6)
    assert record.signal.dtype == np.float32
    assert record.leads == ("aVR", "V1") and record.sample_rate == 500.0


def test_missing_header_is_named(written):
    written.with_suffix(".hea").unlink()
    with pytest.raises(RecordError, match=r"r1\.hea"):
        read_record(written)


def test_missing_signal_file_is_named(written):
    written.with_suffix(".dat").unlink()
    with pytest.raises(RecordError, match=r"r1\.dat"):
        read_record(written)


@pytest.mark.parametrize("size", [0, 1, 4, 7, 8, 11])
def test_truncated_signal_file_is_refused(written, size):
    data = written.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


@pytest.mark.parametrize(
    "header", ["", "garbage", "r1 2 500 3\n", "r1 two 500 3\nr1.dat 16\n", "r1 2 500 3\nr1.dat 16 x/mV\nr1.dat\n"]
)
def test_broken_header_is_refused(written, header):
    written.with_suffix(".hea").write_text(header)
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


@pytest.mark.parametrize("rate", ["nan", "-500", "abc", "0", "inf", "5e8", "1e999", "1e-320", "²"])
def test_an_invalid_rate_is_refused(written, rate):
    header = written.with_suffix(".hea")
    header.write_text(header.read_text().replace(" 500 ", f" {rate} ", 1))
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


def test_missing_samples_are_refused(written):
    data = bytearray(written.with_suffix(".dat").read_bytes())
    data[4:6] = (-32768).to_bytes(2, "little", signed=True)  # WFDB's marker of a missing sample
    written.with_suffix(".dat").write_bytes(data)
    with pytest.raises(RecordError, match=r"missing samples \(NaN\) in leads \['AVR'\]"):
        read_record(written)


def test_microvolts_are_scaled_and_unknown_units_refused(written):
    header = written.with_suffix(".hea")
    header.write_text(header.read_text().replace("/mV", "/uV"))
    np.testing.assert_allclose(read_record(written).signal[0, 1], 1.5e-3, rtol=1e-6)
    header.write_text(header.read_text().replace("/uV", "/mmHg"))
    with pytest.raises(RecordError, match="mmHg"):
        read_record(written)


def replaced(written, old, new):
    header = written.with_suffix(".hea")
    assert old in header.read_text()
    header.write_text(header.read_text().replace(old, new, 1))


def test_a_wrong_checksum_is_refused(written):
    data = bytearray(written.with_suffix(".dat").read_bytes())
    data[5] ^= 1
    written.with_suffix(".dat").write_bytes(data)
    with pytest.raises(RecordError, match=r"leads \['AVR'\] do not match the header's checksum"):
        read_record(written)


@pytest.mark.parametrize("count, words", [("2", "too long"), ("4", "truncated")])
def test_a_wrong_count_of_samples_is_refused(written, count, words):
    replaced(written, " 500 3", f" 500 {count}")
    with pytest.raises(RecordError, match=rf"{words}: 12 bytes found, \d+ expected"):
        read_record(written)


def test_a_gain_of_0_is_refused(written):
    replaced(written, "1000.0(0)/mV", "0(0)/mV")
    with pytest.raises(RecordError, match="gain of 0"):
        read_record(written)


@pytest.fixture(params=["16", "212"])
def any_format(request, tmp_path):
    """The same record in the format read by NumPy, and in one read by wfdb."""
    samples = np.array([[0, 100], [1500, -2000], [-7, 32]])
    wfdb.wrsamp(
        "r3", fs=500, units=["mV", "mV"], sig_name=["AVR", "V1"], d_signal=samples, fmt=[request.param] * 2,
        adc_gain=[1000.0, 1000.0], baseline=[0, 0], write_dir=str(tmp_path),
    )  # fmt: skip
    return tmp_path / "r3"


@pytest.mark.parametrize("gain", ["0", "0(0)/mV", "-5/mV", "1e999/mV", "1e-300/mV"])
def test_an_invalid_gain_is_refused_in_every_format(any_format, gain):
    replaced(any_format, "1000.0(0)/mV", gain)
    with pytest.raises(RecordError, match=r"leads \['AVR'\] have a gain of .* \(0: not calibrated\)"):
        read_record(any_format)


@pytest.mark.parametrize("units", ["uV", "\u00b5V", "\u03bcV"])
def test_microvolts_are_read_in_every_format_and_spelling(any_format, units):
    replaced(any_format, "/mV", f"/{units}")
    np.testing.assert_allclose(read_record(any_format).signal[:, 1], [1.5e-3, -2], rtol=1e-6)


def test_units_with_other_letters_are_not_volts(any_format):
    replaced(any_format, "/mV", "/äV")
    with pytest.raises(RecordError, match=r"units \['äV'\] found"):
        read_record(any_format)


def test_a_lead_without_a_name_is_numbered(any_format):
    replaced(any_format, " AVR\n", "\n")
    assert read_record(any_format).leads == ("signal 1", "V1")


def test_a_lead_with_only_file_and_format_is_refused(any_format):
    header = any_format.with_suffix(".hea")
    *lines, last = header.read_text().splitlines()
    header.write_text("\n".join([*lines, " ".join(last.split()[:2])]) + "\n")
    with pytest.raises(RecordError, match=r"leads \['signal 2'\] have a gain of 0 "):
        read_record(any_format)


@pytest.mark.parametrize(
    "old, new", [("2 500", "3 500"), ("2 500", "1 500"), ("500 3", "500 3x"), ("2 500", "² 500"), (" 1000.0(0)/mV ", " /mV ")]
)
def test_an_invalid_header_is_refused_by_name(any_format, old, new):
    replaced(any_format, old, new)
    with pytest.raises(RecordError, match=r"r3\.hea: .* expected"):
        read_record(any_format)


@pytest.mark.parametrize("old", ["2 500", "500 3", "1000.0", "(0)", " 1493 "])
def test_a_number_of_5000_digits_is_refused(any_format, old):
    digits = old.rstrip(" )")
    replaced(any_format, old, digits + "9" * 5000 + old[len(digits) :])
    with pytest.raises(RecordError, match=r"r3\.hea"):
        read_record(any_format)


def test_a_rate_with_an_exponent_does_not_change_the_samples(any_format):
    """wfdb reads '5e2' as 5 Hz and an unknown count."""
    original = read_record(any_format).signal
    replaced(any_format, " 500 3", " 5e2 2")
    with pytest.raises(RecordError, match="r3"):
        read_record(any_format)
    replaced(any_format, " 5e2 2", " 500.0 3")
    np.testing.assert_array_equal(read_record(any_format).signal, original)


@pytest.mark.parametrize("name", ["r\0.dat", "..", "~/r3.dat", "/etc/passwd"])
def test_a_name_that_is_not_a_file_next_to_the_header_is_refused(any_format, name):
    header = any_format.with_suffix(".hea")
    header.write_text(header.read_text().replace("r3.dat", name))
    with pytest.raises(RecordError, match="files beside the header expected"):
        read_record(any_format)


def test_one_file_in_two_formats_is_refused(any_format):
    header = any_format.with_suffix(".hea")
    first, lead_1, lead_2 = header.read_text().splitlines()
    header.write_text(
        "\n".join([first, lead_1.replace(".dat 16 ", ".dat 212 "), lead_2.replace(".dat 212 ", ".dat 16 ")]) + "\n"
    )
    with pytest.raises(RecordError, match=r"r3"):
        read_record(any_format)


@pytest.mark.parametrize("form", ["17", "x", "999"])
def test_an_unknown_format_is_refused(written, form):
    replaced(written, "r1.dat 16 ", f"r1.dat {form} ")
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


def test_a_signal_file_elsewhere_is_refused(written):
    replaced(written, "r1.dat", "../r1.dat")
    with pytest.raises(RecordError, match=r"\['\.\./r1\.dat'\] found, files beside the header expected"):
        read_record(written)


def test_wfdb_s_own_reader_gives_the_same(written, tmp_path):
    """The same recording in two files, which NumPy does not read."""
    samples = np.array([[0, 100], [1500, -2000], [-7, 32]])
    wfdb.wrsamp(
        "r2", fs=500, units=["mV", "uV"], sig_name=["AVR", "V1"], d_signal=samples, fmt=["212", "212"],
        adc_gain=[1000.0, 200.0], baseline=[5, 0], write_dir=str(tmp_path),
    )  # fmt: skip
    record = read_record(tmp_path / "r2")
    np.testing.assert_allclose(record.signal, [[-0.005, 1.495, -0.012], [0.0005, -0.01, 0.00016]], rtol=1e-6)
    replaced(tmp_path / "r2", " 1493 ", " 1494 ")
    with pytest.raises(RecordError, match="checksum"):
        read_record(tmp_path / "r2")


@pytest.mark.parametrize("form", ["24", "32", "80", "212", "508", "516", "524"])
def test_every_format_is_read_in_steps(tmp_path, rng, form):
    samples = rng.integers(-100, 100, (50, 2))
    wfdb.wrsamp(
        "r4", fs=500, units=["mV"] * 2, sig_name=["I", "II"], d_signal=samples, fmt=[form] * 2,
        adc_gain=[1000.0, 200.0], baseline=[5, 0], write_dir=str(tmp_path),
    )  # fmt: skip
    np.testing.assert_allclose(read_record(tmp_path / "r4").signal.T, (samples - [5, 0]) / [1000, 200], rtol=1e-6)


def test_big_endian_samples_and_an_offset_are_read(written):
    little = read_record(written).signal
    data = written.with_suffix(".dat")
    data.write_bytes(bytes(24) + np.fromfile(data, "<i2").astype(">i2").tobytes())
    header = written.with_suffix(".hea")
    header.write_text(header.read_text().replace(".dat 16 ", ".dat 61+24 "))
    np.testing.assert_array_equal(read_record(written).signal, little)


def test_real_recordings_are_read_as_wfdb_reads_them(shared):
    for name in ("00197_hr", "00122_hr"):
        path = shared / "data/ptbxl/records500/00000" / name
        np.testing.assert_allclose(read_record(path).signal, wfdb.rdrecord(str(path)).p_signal.T, rtol=1e-6, atol=1e-9)


def write_part(folder, name, samples, fs=500, names=("I", "II")):
    wfdb.wrsamp(
        name, fs=fs, units=["mV"] * 2, sig_name=list(names), d_signal=samples, fmt=["16"] * 2, adc_gain=[200.0, 400.0],
        baseline=[3, 0], write_dir=str(folder),
    )  # fmt: skip


@pytest.fixture
def parts(tmp_path, rng):
    """Two segments of 20 and 30 samples, and the record that joins them."""
    write_part(tmp_path, "p1", rng.integers(-999, 999, (20, 2)))
    write_part(tmp_path, "p2", rng.integers(-999, 999, (30, 2)))
    (tmp_path / "all.hea").write_text("all/2 2 500 50\np1 20\np2 30\n")
    return tmp_path / "all"


def test_segments_are_joined_like_wfdb_does(parts):
    record = read_record(parts)
    np.testing.assert_allclose(record.signal, wfdb.rdrecord(str(parts)).p_signal.T, rtol=1e-6)
    assert record.signal.shape == (2, 50) and record.leads == ("I", "II") and record.sample_rate == 500


def test_segments_are_joined_by_lead_name(parts, rng):
    """A variable layout: a header of names first, then segments that may have another order and another gain."""
    (parts.parent / "layout.hea").write_text("layout 2 500 0\n~ 0 200/mV 0 0 0 0 0 I\n~ 0 400/mV 0 0 0 0 0 II\n")
    parts.with_suffix(".hea").write_text("all/3 2 500 50\nlayout 0\np1 20\np2 30\n")
    write_part(parts.parent, "p2", rng.integers(-999, 999, (30, 2)), names=("II", "I"))
    np.testing.assert_allclose(read_record(parts).signal, wfdb.rdrecord(str(parts)).p_signal.T, rtol=1e-6)


def another_rate(parts):
    write_part(parts.parent, "p2", np.arange(60).reshape(30, 2), fs=250)


def other_leads(parts):
    write_part(parts.parent, "p2", np.arange(60).reshape(30, 2), names=("I", "III"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda parts: replaced(parts, "p2 30", "~ 30"), "missing samples .* gap of 30 samples"),
        (lambda parts: replaced(parts, "p2 30", "p2 29"), r"p2\.hea: 30 samples at 500 Hz found, 29 at 500 Hz expected"),
        (lambda parts: replaced(parts, "500 50", "500 60"), r"segments of 50 samples in total found, 60 expected"),
        (lambda parts: replaced(parts, "p2 30", "all 30"), r"all\.hea: segments found in a segment"),
        (lambda parts: replaced(parts, "p2 30", "../p2 30"), r"files beside the header expected"),
        (lambda parts: replaced(parts, "p2 30", "p3 30"), r"p3\.hea: no such file"),
        (lambda parts: replaced(parts, "all/2", "all/3"), r"2 lines of segments found, 3 expected"),
        (lambda parts: parts.with_suffix(".hea").write_text("all/1 2 500 0\np1 0\n"), "holds no samples"),
        (another_rate, r"p2\.hea: 30 samples at 250 Hz found, 30 at 500 Hz expected"),
        (other_leads, "its segments have different leads"),
    ],
)
def test_inconsistent_segments_are_refused_with_the_true_reason(parts, change, message):
    change(parts)
    with pytest.raises(RecordError, match=message):
        read_record(parts)


def write_frames(folder, per_frame, skew=(0, 0)):
    """Two leads of 6 frames in format 16, the first with `per_frame` samples per frame; skew in frames, as stored."""
    lead_1, lead_2 = np.arange(6 * per_frame) ** 2, 10 * np.arange(6)
    np.concatenate([lead_1.reshape(6, per_frame), lead_2[:, None]], axis=1).astype("<i2").tofile(folder / "f.dat")
    form_1, form_2 = (f"16x{n}:{s}" for n, s in zip((per_frame, 1), skew))
    (folder / "f.hea").write_text(
        f"f 2 500 6\nf.dat {form_1} 200/mV 16 0 0 {lead_1.sum()} 0 I\nf.dat {form_2} 200/mV 16 0 0 {lead_2.sum()} 0 II\n"
    )
    return folder / "f"


def test_samples_of_a_frame_are_averaged(tmp_path):
    record = read_record(write_frames(tmp_path, 4))
    np.testing.assert_allclose(record.signal[0], (np.arange(24) ** 2).reshape(6, 4).mean(axis=1) / 200, rtol=1e-6)
    np.testing.assert_allclose(record.signal[1], np.arange(6) / 20, rtol=1e-6)
    np.testing.assert_allclose(record.signal.T, wfdb.rdrecord(str(tmp_path / "f")).p_signal, atol=1 / 200)  # wfdb truncates
    assert record.sample_rate == 500


@pytest.mark.parametrize("per_frame", [1, 4])
def test_skew_is_removed(tmp_path, per_frame):
    """A lead stored two frames late starts two frames later, and all end with it."""
    plain = read_record(write_frames(tmp_path, per_frame)).signal
    skewed = read_record(write_frames(tmp_path, per_frame, (2, 0))).signal
    np.testing.assert_array_equal(skewed, [plain[0, 2:], plain[1, :4]])
    with pytest.raises(RecordError, match="no samples beyond the skew"):
        read_record(write_frames(tmp_path, per_frame, (0, 6)))


def test_a_count_of_0_samples_means_unknown(any_format):
    """As in header(5), which then has no checksum either."""
    original = read_record(any_format).signal
    header = any_format.with_suffix(".hea")
    header.write_text(re.sub(r"\d+ 0 (AVR|V1)", r"0 0 \1", header.read_text().replace(" 500 3", " 500 0")))
    if "212" in any_format.with_suffix(".hea").read_text():
        with pytest.raises(RecordError, match="0 samples found, their number expected"):
            read_record(any_format)
    else:
        np.testing.assert_array_equal(read_record(any_format).signal, original)
        replaced(any_format, " 0 0 AVR", " 1494 0 AVR")
        with pytest.raises(RecordError, match="checksum"):
            read_record(any_format)


def test_a_missing_count_and_checksum_are_accepted(any_format):
    original = read_record(any_format).signal
    header = any_format.with_suffix(".hea")
    first, *rest = header.read_text().splitlines()
    header.write_text("\n".join([first.removesuffix(" 3"), *rest]) + "\n")
    np.testing.assert_array_equal(read_record(any_format).signal, original)


def test_a_record_without_leads_is_refused(written):
    written.with_suffix(".hea").write_text("r1 0 500 3\n")
    with pytest.raises(RecordError, match="holds no samples"):
        read_record(written)
