import jax
import numpy as np
import pytest

from ecgbyte_jax.encoders.config import CLIPS, VITS, EncoderConfig, count_features
from ecgbyte_jax.encoders.picture import cut, draw
from ecgbyte_jax.errors import ConfigError, SettingsError

Image = pytest.importorskip("PIL.Image")
VIT, CLIP = VITS["tiny"], CLIPS["tiny"].picture
FILTERS = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC}


def pixels_of(patches: jax.Array, side: int) -> np.ndarray:
    """The patches of one picture put together, [3, 224, 224], pixel by pixel."""
    whole = np.zeros((3, 224, 224), np.float32)
    for number, patch in enumerate(np.asarray(patches)):
        row, column = divmod(number, 224 // side)
        whole[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = patch.reshape(3, side, side)
    return whole


@pytest.fixture
def signals(rng) -> np.ndarray:
    """Two segments in mV with a few peaks beyond 1.5 mV."""
    return (0.2 * rng.standard_t(3, (2, 12, 500))).astype(np.float32)


@pytest.mark.parametrize("vision", [VIT, CLIP])
def test_a_picture_is_the_whole_strip_as_pillow_resizes_it(vision, signals):
    for row, picture in zip(signals, draw(signals, vision, published_scaling=False)):
        expected = Image.fromarray(row / 3 + 0.5).resize((224, 224), FILTERS[vision.resampling])
        np.testing.assert_allclose(picture, np.asarray(expected), atol=1e-6)
    assert np.asarray(draw(signals, vision, published_scaling=False)).max() > 1  # peaks are not clipped


@pytest.mark.parametrize("vision", [VIT, CLIP])
def test_as_published_it_is_within_a_level_or_two_of_the_image_processor(vision, signals):
    transformers = pytest.importorskip("transformers")
    u = (signals - signals.min((1, 2), keepdims=True)) / (np.ptp(signals, axis=(1, 2), keepdims=True) + 1e-6)
    images = [np.repeat((255 * row).astype(np.uint8)[..., None], 3, axis=2) for row in u]
    processor = transformers.ViTImageProcessorPil() if vision is VIT else transformers.CLIPImageProcessorPil()
    expected = processor(images, return_tensors="np")["pixel_values"]
    ours = cut(draw(signals, vision, published_scaling=True, published_crop=vision is CLIP), vision)
    for patches, theirs in zip(ours, expected):
        levels = (pixels_of(patches, vision.patch) - theirs) * np.array(vision.deviation)[:, None, None] * 255
        assert np.abs(levels).max() < 1.6 and abs(levels.mean()) < 0.1  # Pillow rounds to whole levels twice
        assert theirs.std() > 0.02


def test_the_published_crop_sees_12_samples_and_otherwise_all_are_seen(signals):
    other = signals.copy()
    other[:, :, :240], other[:, :, 260:] = 0, 0
    for crop in (True, False):
        pictures = [draw(each, CLIP, published_scaling=False, published_crop=crop) for each in (signals, other)]
        assert np.allclose(*pictures, atol=1e-5) == crop


def test_published_scaling_loses_the_amplitude_and_mv_keep_it(signals):
    for published in (True, False):
        pictures = [np.asarray(draw(factor * signals, VIT, published)) for factor in (1, 2)]
        assert np.allclose(*pictures, atol=0.01) == published


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "vit", "published_crop": True}, "published_crop: True found with kind 'vit', which sees whole segments; Fa"),
        ({"kind": "clip", "patch": 16}, "patch: 16 found with kind 'clip', whose patches are squares of a picture; 0 expected"),
        ({"kind": "clip", "size": "resnet18"}, r"size: 'resnet18' found with kind 'clip', one of \('base', 'tiny'\) expected"),
        ({"weights": "folder"}, "weights: 'folder' found with kind 'st_mem', which starts from random ones; '' expected"),
    ],
)
def test_settings_of_another_kind_are_refused(fields, message):
    with pytest.raises(SettingsError, match=f"^{message}"):
        EncoderConfig(**fields)


def test_a_segment_shorter_than_what_is_cropped_from_it_is_refused():
    config = EncoderConfig("clip", "tiny", published_crop=True)
    with pytest.raises(ConfigError, match=r"signal\.segment_length: 11 found, at least 12 expected"):
        count_features(config, 11)
    assert count_features(config, 12) == count_features(EncoderConfig("clip", "tiny"), 11) == 49
