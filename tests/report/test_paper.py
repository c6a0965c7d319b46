"""Pictures: true to scale, all leads, the same bytes again, and attention where it belongs."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, RecordError
from ecgbyte_jax.report.attention import draw_attention, draw_layer, lay_out_whole
from ecgbyte_jax.report.curves import draw_training
from ecgbyte_jax.report.paper import draw_ecg, draw_on, lay_out
from ecgbyte_jax.report.save import picture_bytes, save_picture, small_png
from ecgbyte_jax.report.tokens import draw_compression, draw_tokens, draw_usage

RATE = 250


@pytest.fixture
def signal(rng) -> np.ndarray:
    """Ten seconds of slow waves, each lead with its own height, mV."""
    seconds = np.arange(10 * RATE) / RATE
    return 0.1 * np.arange(1, 13)[:, None] * np.sin(2 * np.pi * seconds)


def a_tokenizer(signal) -> ECGTokenizer:
    return ECGTokenizer(Quantizer(-1, 1), BPE.train(Quantizer(-1, 1).encode(signal), 20))


def pixels(figure, dpi=254) -> np.ndarray:
    """At 254 dots an inch 10 pixels are a millimetre; [rows from the top, columns, 3]."""
    image = Image.open(io.BytesIO(picture_bytes(figure, "png", dpi)))
    assert round(image.info["dpi"][0]) == dpi
    return np.asarray(image.convert("RGB")).astype(int)


def test_a_millimetre_is_a_millimetre(signal):
    """The bold lines of the grid lie 5 mm apart, and the calibration pulse is 10 mm high and 5 mm wide."""
    image = pixels(draw_ecg(signal, RATE))
    sheet = lay_out(signal, RATE)
    assert image.shape[:2] == (round(10 * sheet.height), round(10 * sheet.width))
    strip = image[5:8, :, 1].mean(axis=0)  # above everything: the grid's own lines
    bold = np.flatnonzero(strip < 190)
    starts = bold[np.flatnonzero(np.diff(bold, prepend=-9) > 1)]
    assert len(starts) == sheet.width // 5 + 1 and (np.abs(np.diff(starts) - 50) <= 1).all()
    dark = image.sum(axis=2) < 120
    left, zero = sheet.pulses[0]
    column = dark[:, round(10 * (left + 3.5))]  # through the top of the pulse
    rows = np.flatnonzero(column[: round(10 * (sheet.height - zero + 2))])
    assert abs((sheet.height - rows.mean() / 10) - (zero + 10)) < 0.15
    row = dark[round(10 * (sheet.height - zero - 5))]  # half way up
    edges = np.flatnonzero(row[: round(10 * (left + 8))]) / 10
    assert abs(edges.min() - (left + 1)) < 0.2 and abs(edges.max() - (left + 6)) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("draw", [draw_ecg, lambda signal, rate: draw_tokens(signal, rate, a_tokenizer(signal))])
def test_every_sample_of_a_trace_is_drawn(signal, draw):
    """Also those that lie within a ninth of a pixel of a line, which matplotlib would leave out."""
    figure = draw(signal[:, :500], RATE)
    svg = picture_bytes(figure, "svg").decode()
    lengths = [path.count("L ") + 1 for path in re.findall(r'<path d="(M [^"]*)"', svg)]
    assert lengths.count(500) == 12


def test_the_svg_has_the_size_of_the_paper(signal):
    sheet = lay_out(signal, RATE, "12x1")
    head = picture_bytes(draw_ecg(signal, RATE, layout="12x1"), "svg").decode()[:2000]
    width, height = (float(re.search(rf'{name}="([\d.]+)pt"', head)[1]) / 72 * 25.4 for name in ("width", "height"))
    assert width == pytest.approx(sheet.width, abs=0.01) and height == pytest.approx(sheet.height, abs=0.01)


def test_ten_seconds_stand_in_quarters_above_lead_ii_in_full(signal):
    panels = lay_out(signal, RATE).panels
    assert [LEADS[p.lead] for p in panels[:4]] == ["I", "aVR", "V1", "V4"] and len(panels) == 13
    assert [(p.start, p.stop) for p in panels[:4]] == [(0, 625), (625, 1250), (1250, 1875), (1875, 2500)]
    assert (LEADS[panels[-1].lead], panels[-1].start, panels[-1].stop) == ("II", 0, 2500)
    assert sorted(p.lead for p in panels[:12]) == list(range(12))


def test_a_sample_is_at_the_same_place_in_its_column_and_in_the_strip_below(signal):
    sheet = lay_out(signal[:, :2401], RATE)  # no multiple of four
    strip = sheet.x(sheet.panels[-1])
    for panel in sheet.panels[:12]:
        np.testing.assert_allclose(sheet.x(panel), strip[panel.start : panel.stop], atol=1e-9)


def test_a_low_sample_rate_is_named_on_the_paper(signal):
    """One that shows no peak bluntly is not."""
    texts = {rate: [text.get_text() for text in draw_ecg(signal, rate).axes[0].texts] for rate in (50, 500)}
    assert "50 Hz   25 mm/s   10 mm/mV" in texts[50] and "25 mm/s   10 mm/mV" in texts[500]


def test_the_original_is_grey_behind_the_trace_and_stays_on_the_paper(signal):
    cut = np.clip(signal, -0.3, 0.3)
    sheet = lay_out(cut, RATE, original=signal)
    for panel in sheet.panels:
        part = panel.zero + 10 * signal[panel.lead, panel.start : panel.stop]
        assert panel.bottom <= part.min() and part.max() <= panel.top
    grey = [line for line in draw_on(sheet, cut, original=signal).axes[0].lines if line.get_color() == "#8a8a8a"]
    assert len(grey) == 13 and grey[0].get_zorder() < 4


def test_two_seconds_and_12_x_1_show_every_lead_in_full(signal):
    for short, layout in ((signal[:, :500], "3x4"), (signal, "12x1")):
        panels = lay_out(short, RATE, layout).panels
        assert sorted(p.lead for p in panels) == list(range(12))
        assert all((p.start, p.stop) == (0, short.shape[1]) for p in panels)


def test_no_trace_leaves_its_row_or_the_paper(signal):
    signal[5] *= 4
    for layout in ("3x4", "12x1"):
        sheet = lay_out(signal, RATE, layout)
        for panel in sheet.panels:
            part = panel.zero + 10 * signal[panel.lead, panel.start : panel.stop]
            assert panel.bottom <= part.min() and part.max() <= panel.top
            assert panel.bottom > 0 and panel.top < sheet.height and sheet.x(panel)[-1] < sheet.width


def test_other_shapes_are_refused(signal):
    for wrong, layout in ((signal[:11], "3x4"), (signal[:, :0], "3x4"), (signal, "6x2"), (signal[0], "3x4")):
        with pytest.raises(RecordError, match="expected"):
            lay_out(wrong, RATE, layout)


def test_attention_colours_its_samples_and_no_others(signal):
    weights = np.zeros((12, 500), np.float32)
    weights[LEADS.index("V1"), 200:240] = 1.0
    figure = draw_attention(signal[:, :500], weights, RATE)
    sheet, image = lay_out(signal[:, :500], RATE, "3x4", 14.0), pixels(figure)

    def colour(lead: str, sample: float) -> np.ndarray:
        panel = next(p for p in sheet.panels if LEADS[p.lead] == lead)
        x, y = panel.left + sample / RATE * 25, panel.bottom + 1.5
        return image[round(10 * (sheet.height - y)) - 3 : round(10 * (sheet.height - y)) + 3, round(10 * x)].mean(axis=0)

    strong, weak, other = colour("V1", 220), colour("V1", 100), colour("V2", 220)
    assert strong[1] < 120 and weak[1] > 200 and other[1] > 200
    assert colour("V1", 197)[1] > 200 and colour("V1", 203)[1] < 120  # the very edge


def test_what_the_model_was_not_given_is_hatched(signal):
    seen = np.arange(12 * 500).reshape(12, 500) < 11 * 500
    weights = np.ones((12, 500)) * seen
    plain = pixels(draw_attention(signal[:, :500], weights, RATE), 100)
    hatched = pixels(draw_attention(signal[:, :500], weights, RATE, seen=seen), 100)
    changed = np.argwhere((plain != hatched).any(axis=2)) / 100 * 25.4
    panel = lay_out(signal[:, :500], RATE, "3x4", 14.0).panels
    last = next(p for p in panel if p.lead == 11)
    assert len(changed) and changed[:, 1].min() > last.left - 1


@pytest.mark.parametrize("sign", [1, -1])
def test_the_colours_of_a_scale_rise_in_steps_and_are_true(signal, rng, sign):
    """Also in small PNGs, most of whose pixels are paper and traces."""
    weights = rng.exponential(1.0, (12, 500))
    weights[:6] *= sign
    figure = draw_attention(signal[:, :500], weights, RATE)
    bar = figure.axes[1].get_position()
    true, small = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        for data in (picture_bytes(figure, "png", 150), small_png(figure, 150))
    )
    row = round((1 - (bar.y0 + bar.y1) / 2) * len(true))
    columns = slice(round(bar.x0 * true.shape[1]) + 3, round(bar.x1 * true.shape[1]) - 3)
    true, small = true[row, columns], small[row, columns]
    steps = small[np.append(True, (np.diff(small, axis=0) != 0).any(axis=1))]
    assert len(np.unique(steps, axis=0)) == len(steps) >= 20, "a colour came back"
    assert np.sqrt(((true - small) ** 2).sum(axis=1)).max() < 16
    if sign == 1:
        assert (np.diff(steps[:, 1]) <= 0).all(), "from yellow to red there is ever less green"


def test_a_layer_over_its_sheet_shows_what_the_attention_picture_shows(signal, rng):
    part, weights, seen = signal[:, :500], rng.exponential(1.0, (12, 500)), np.ones((12, 500), bool)
    sheet = lay_out_whole(part, RATE)
    paper, layer = pixels(draw_on(sheet, part), 100), pixels(draw_layer(sheet, weights, seen), 100)
    assert paper.shape == layer.shape == pixels(draw_attention(part, weights, RATE), 100).shape
    seen[6:, 250:] = False
    hatched = pixels(draw_layer(sheet, weights, seen), 100)
    assert (hatched != layer).any()
    both = paper * layer / 255
    dark = paper.sum(axis=2) < 30
    assert dark.any() and (both.sum(axis=2)[dark] < 30).all(), "the trace stays black beneath the layer"


@pytest.mark.slow
def test_the_same_picture_has_the_same_bytes(signal, tmp_path):
    tokenizer = a_tokenizer(signal[:, :500])
    lines = [{"step": i, "loss": 2.0 / i, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_s": 9.0} for i in range(1, 30)]
    lines[-1]["valid_loss"] = 0.5
    lengths = np.array([len(token) for token in tokenizer.bpe.tokens])
    pictures = {
        "ecg": lambda: draw_ecg(signal, RATE, title="$x_1$ <b>"),
        "attention": lambda: draw_attention(signal[:, :500], signal[:, :500], RATE),
        "tokens": lambda: draw_tokens(signal[:, :500], RATE, tokenizer),
        "training": lambda: draw_training(lines),
        "usage": lambda: draw_usage(np.arange(len(lengths)), lengths),
        "compression": lambda: draw_compression({0: 1.0, 20: 3.0}),
    }
    for name, draw in pictures.items():
        for kind in ("png", "svg"):
            data = picture_bytes(draw(), kind, 50)
            assert data == picture_bytes(draw(), kind, 50) and len(data) > 3_000, name
            assert b"<dc:date>" not in data and b"Matplotlib v" not in data
    save_picture(draw_compression({0: 1.0}), tmp_path / "new" / "a.svg")
    assert (tmp_path / "new" / "a.svg").read_bytes() == picture_bytes(draw_compression({0: 1.0}), "svg")
    save_picture(draw_compression({0: 1.0}), str(tmp_path / "b.svg"))
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "new" / "a.svg").read_bytes()
    with pytest.raises(ConfigError, match=r"ends in .png or .svg"):
        save_picture(pictures["ecg"](), tmp_path / "a.gif")
    assert len(small_png(pictures["ecg"](), 150)) < len(picture_bytes(pictures["ecg"](), "png", 150)) / 2


@pytest.mark.parametrize(
    "title",
    [
        "a\x1b[31m\x0bb",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("a\x00b", "a\ud800b\ufffe", "-- > ]]> <!-- & \\$", "two\nlines")),
    ],
)
def test_an_svg_with_any_title_is_whole_xml(signal, title):
    tokenizer = ECGTokenizer(Quantizer(-1, 1), BPE.train(Quantizer(-1, 1).encode(signal[:, :500]), 20))
    for figure in (draw_ecg(signal, RATE, title=title), draw_tokens(signal[:, :500], RATE, tokenizer, title=title)):
        ElementTree.fromstring(picture_bytes(figure, "svg"))
        picture_bytes(figure, "png", 30)
