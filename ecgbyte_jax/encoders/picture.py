"""An ECG as a picture, of which a vision encoder reads square patches.

Axes: B batch, L samples, Y X rows and columns of the picture, N patches, P pixels of a patch's side, C = 3 channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ecgbyte_jax.encoders.config import LEADS, SIDE, VisionConfig
from ecgbyte_jax.encoders.scaling import scale_to_1

_RANGE = 3.0  # mV from black to white: what a segment of 2 s of PTB-XL spans, on average of 200


def draw(signals: jax.Array, vision: VisionConfig, published_scaling: bool, published_crop: bool = False) -> jax.Array:
    """The picture [B, Y, X] of segments [B, 12, L] in mV: leads as rows, samples as columns, resized to 224 x 224.

    Black is 0 and -1.5 mV, white 1 and 1.5 mV; what is beyond is not clipped. Published scaling: `scale_to_1`, in steps of
    1 / 255, clipped, as ECG-Byte's released code and an image of 8 bits have it. Published crop, a fault of the same code: the
    12 leads are 224 pixels high and time as much enlarged, and only the 12 samples in the middle of a segment are seen.
    The filters are those of Pillow, which Hugging Face's image processors use.
    """
    samples = signals.shape[-1]
    u = jnp.floor(255 * scale_to_1(signals)) / 255 if published_scaling else signals / _RANGE + 0.5
    width = SIDE * samples // LEADS if published_crop else SIDE
    rows = _resampling(LEADS, SIDE, vision.resampling)
    columns = _resampling(samples, width, vision.resampling)[(width - SIDE) // 2 :][:SIDE]
    picture = jnp.einsum("blt,xt,yl->byx", u, columns, rows, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(picture, 0, 1) if published_scaling else picture


def _resampling(count: int, places: int, resampling: str) -> np.ndarray:
    """The weight float32 [places, count] of each of so many samples in each of as many places over the same width.

    w(d) is 1 - |d|, or Keys' cubic with a = -1/2 (1981), of the distance d in samples, or in places where these are wider; the
    weights of a place have the sum 1.
    """
    centres = (np.arange(places) + 0.5) * count / places - 0.5
    d = np.abs(centres[:, None] - np.arange(count)) / max(count / places, 1)
    if resampling == "cubic":
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    else:
        weights = np.maximum(1 - d, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def cut(picture: jax.Array, vision: VisionConfig) -> jax.Array:
    """The patches [B, N, C P P] of a picture [B, Y, X], row by row, each channel less its mean and over its deviation."""
    side = SIDE // vision.patch
    squares = picture.reshape(-1, side, vision.patch, side, vision.patch).swapaxes(2, 3)  # [B, Y / P, X / P, P, P]
    squares = squares.reshape(len(picture), side**2, 1, vision.patch**2)
    mean, deviation = (jnp.array(values)[:, None] for values in (vision.mean, vision.deviation))  # [C, 1]
    return ((squares - mean) / deviation).reshape(len(picture), side**2, -1)


def picture_flops(samples: int) -> float:
    """Of resizing one segment: every sample is weighted in every column, then every lead in every row."""
    return 2.0 * LEADS * SIDE * (samples + SIDE)
