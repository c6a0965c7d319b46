"""The settings of the encoder that the first of two stages trains, the sizes that they name, and what a decoder reads."""

from dataclasses import dataclass

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.rules import Rule, at_least, check, one_of, setting

LEADS = 12
INPUTS = ("tokens", "encoder", "elf_base", "elf_patch", "elf_conv")
CONNECTORS = ("linear", "mlp", "query")
MASKED = ("mtae", "mlae", "st_mem")  # kinds of masked autoencoders
VISION = ("vit", "clip")  # kinds that see an ECG as a picture
CONTRASTED = ("merl", "clip")  # kinds that are contrasted with reports
# The settings of an encoder that its features depend on.
FEATURES_BY = ("kind", "size", "patch", "published_scaling", "published_crop")
FOLDER = "ecg_input"  # of a stored map from signals to vectors, beside a language model
_FEWEST, _BEST, _MOST = 16, 32, 64  # spans of a lead
STRIDE = 16  # samples from one place of a ResNet to the next


@dataclass(frozen=True)
class Stack:
    """The sizes of a stack of transformer blocks; a head has width / heads channels.

    epsilon: of its norms. gelu: "exact" or "quick", x sigmoid(1.702 x). causal: a token attends to those before it alone.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    epsilon: float = 1e-5
    gelu: str = "exact"
    causal: bool = False


# Name -> encoder and decoder. "base": ViT-B (Dosovitskiy et al. 2021) with the decoder of ECG-Bench.
SIZES = {
    "base": (Stack(768, 12, 12, 3072), Stack(256, 4, 4, 1024)),
    "tiny": (Stack(64, 2, 2, 128), Stack(32, 1, 2, 64)),
}


@dataclass(frozen=True)
class ResNetConfig:
    """Blocks of the four stages, whether they are bottlenecks, and the channels of the first stage, which each next doubles."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    width: int = 64


RESNETS = {
    "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetConfig((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetConfig((3, 4, 23, 3), bottleneck=True),
    "tiny": ResNetConfig((1, 1, 1, 1), bottleneck=True, width=4),
}
SHARED_WIDTH = 256  # of MERL's space of ECGs and reports

SIDE = 224  # pixels of a picture's rows and columns
TEXT_PLACES = 77  # tokens of a text


@dataclass(frozen=True)
class VisionConfig:
    """What reads a picture: its blocks, the pixels of a patch's side, how it is resized, its channels' means and deviations."""

    stack: Stack
    patch: int
    resampling: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @property
    def patches(self) -> int:
        """The patches of a picture."""
        return (SIDE // self.patch) ** 2


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's readers of pictures and of texts, and the width of their shared space."""

    picture: VisionConfig
    text: Stack
    shared: int


def _vit(*sizes: int) -> VisionConfig:
    return VisionConfig(Stack(*sizes, epsilon=1e-12), 16, "linear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _clip(picture: tuple[int, ...], text: tuple[int, ...], shared: int) -> ClipConfig:
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    vision = VisionConfig(Stack(*picture, gelu="quick"), 32, "cubic", mean, deviation)
    return ClipConfig(vision, Stack(*text, gelu="quick", causal=True), shared)


# "base": ViT-B/16 (Dosovitskiy et al. 2021) and CLIP with ViT-B/32 (Radford et al. 2021), with what their processors do.
VITS = {"base": _vit(768, 12, 12, 3072), "tiny": _vit(64, 2, 2, 128)}
CLIPS = {"base": _clip((768, 12, 12, 3072), (512, 12, 8, 2048), 512), "tiny": _clip((64, 2, 2, 128), (32, 2, 2, 64), 32)}
_SIZES = dict.fromkeys(MASKED, SIZES) | {"merl": RESNETS, "vit": VITS, "clip": CLIPS}


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder that the first of two stages trains."""

    kind: str = setting(
        "st_mem",
        'a patch is a span of all leads ("mtae"), a lead ("mlae"), a span of a lead ("st_mem"), a square of a picture ("vit"); '
        '"merl", "clip": contrasted with reports, "clip" as a picture',
        one_of(*_SIZES),
    )
    size: str = setting(
        "base",
        '"base": ViT-B, 85 M parameters (clip: 151 M with the reader of texts); "tiny": 0.07 M; merl: "resnet18", "resnet50", '
        '"resnet101" (published) or "tiny"',
        one_of(*dict.fromkeys((*SIZES, *RESNETS))),
    )
    patch: int = setting(
        0,
        "mtae, st_mem: samples of a span; 0: the divisor of the segment that makes 16 to 64 spans, nearest to 32",
        at_least(0),
    )
    mask_share: float = setting(
        0.75,
        "mtae, mlae, st_mem, vit: share of the patches that are hidden",
        Rule(lambda share: 0 < share < 1, "above 0, below 1"),
    )
    published_scaling: bool = setting(
        False,
        "each segment is scaled to 0..1 (merl: 0..1000), which loses its amplitude; otherwise by 0.2 mV (vit, clip: 3 mV)",
    )
    published_crop: bool = setting(
        False, "clip: the 12 samples in the middle of a segment are all that is seen; otherwise the whole segment"
    )
    text_encoder: str = setting(
        "",
        'merl: a Hugging Face folder of a BERT, which stays as it is (published: a medical one); "": none, a report is the sum '
        "of fixed random vectors, one for each of its words and pairs of words",
        is_path=True,
    )
    weights: str = setting(
        "",
        'vit, clip: a Hugging Face folder of a ViT-B/16 or CLIP ViT-B/32 whose weights it starts from; "": random ones',
        is_path=True,
    )
    pretrained: str = setting(
        "",
        'ecg_input.kind "encoder": the run whose --stage=pretrain trained it; "": this one; "random": as control, none',
        is_path=True,
    )

    def __post_init__(self) -> None:
        why = {"mlae": "whose patches are whole leads", "merl": "which has no patches"}
        why |= dict.fromkeys(VISION, "whose patches are squares of a picture")
        sizes, merl = _SIZES[self.kind], self.kind == "merl"
        contradictions = {
            f"size: {self.size!r} found with kind {self.kind!r}, one of {tuple(sizes)} expected": self.size not in sizes,
            f"patch: {self.patch} found with kind {self.kind!r}, {why.get(self.kind)}; 0 expected": self.kind in why
            and self.patch,
            f"text_encoder: {self.text_encoder!r} found with kind {self.kind!r}, which reads no reports by it; '' expected": (
                self.text_encoder != "" and not merl
            ),
            f"published_crop: True found with kind {self.kind!r}, which sees whole segments; False expected": (
                self.published_crop and self.kind != "clip"
            ),
            f"weights: {self.weights!r} found with kind {self.kind!r}, which starts from random ones; '' expected": (
                self.weights != "" and self.kind not in VISION
            ),
        }
        check(self, [problem for problem, found in contradictions.items() if found])


@dataclass(frozen=True)
class EcgInputConfig:
    """What the language model sees of an ECG, between <sig_start> and <sig_end>."""

    kind: str = setting(
        "tokens",
        '"tokens": those of the ECG tokenizer; "encoder": features of `encoder`; without one, a linear map of the signal '
        '("elf_base") or of each of its spans ("elf_patch"), or two convolutions ("elf_conv")',
        one_of(*INPUTS),
    )
    vectors: int = setting(1, "encoder, elf_patch: vectors that an ECG becomes, each in place of a token", at_least(1))
    connector: str = setting(
        "linear",
        'encoder: from its features to the vectors: "linear", "mlp" (both of the mean of consecutive ones), "query": attention',
        one_of(*CONNECTORS),
    )
    train_encoder: bool = setting(False, "encoder: it is trained with the language model; otherwise it is frozen")

    def __post_init__(self) -> None:
        one = self.kind in ("elf_base", "elf_conv") and self.vectors > 1
        check(self, [f"vectors: {self.vectors} found with kind '{self.kind}', which makes one; 1 expected" if one else ""])


@dataclass(frozen=True)
class Grid:
    """The patches of a segment: G groups of N patches of P values. Patches of a group share a lead's embedding in ST-MEM."""

    groups: int
    patches: int
    values: int


def patch_grid(config: EncoderConfig, samples: int) -> Grid:
    """How segments [12, samples] are cut; raises ConfigError where spans of `config.patch` do not fill one."""
    if config.kind == "mlae":
        return Grid(1, LEADS, samples)
    span = config.patch or _best_span(samples)
    if samples % span or span == samples:
        raise ConfigError(f"encoder.patch: {span} found, a divisor of signal.segment_length = {samples} below it expected")
    spans = samples // span
    return Grid(1, spans, LEADS * span) if config.kind == "mtae" else Grid(LEADS, spans, span)


def _best_span(samples: int) -> int:
    counts = [count for count in range(_FEWEST, _MOST + 1) if samples % count == 0]
    if not counts:
        raise ConfigError(
            f"signal.segment_length: {samples} found, which no number of spans from {_FEWEST} to {_MOST} divides; give "
            "encoder.patch, the samples of a span"
        )
    return samples // min(counts, key=lambda count: abs(count - _BEST))


def count_kept(grid: Grid, mask_share: float) -> int:
    """The patches of a group that are not hidden: the whole part of their share, 1 at least and all but 1 at most."""
    return min(max(int(grid.patches * (1 - mask_share) + 1e-9), 1), grid.patches - 1)


def vision_of(config: EncoderConfig) -> VisionConfig:
    """What reads the picture of an ECG; `config.kind` is "vit" or "clip"."""
    return CLIPS[config.size].picture if config.kind == "clip" else VITS[config.size]


def count_places(samples: int) -> int:
    """The places that a ResNet makes of so many samples."""
    return -(-samples // STRIDE)


def count_features(config: EncoderConfig, samples: int) -> int:
    """How many features an encoder has of a segment of so many samples.

    Raises ConfigError as `patch_grid` does, and where a segment is shorter than what is cropped from it.
    """
    if config.kind == "merl":
        return count_places(samples)
    if config.published_crop and samples < LEADS:
        raise ConfigError(
            f"signal.segment_length: {samples} found, at least {LEADS} expected with encoder.published_crop, which sees {LEADS}"
        )
    if config.kind in VISION:
        return vision_of(config).patches
    grid = patch_grid(config, samples)
    return grid.groups * grid.patches


def check_vectors(config: EcgInputConfig, encoder: EncoderConfig, samples: int) -> None:
    """Raises ConfigError where so many vectors cannot be made of a segment of so many samples."""
    if config.kind == "elf_patch" and samples % config.vectors:
        raise ConfigError(f"ecg_input.vectors: {config.vectors} found, a divisor of signal.segment_length = {samples} expected")
    if config.kind == "encoder":
        features = count_features(encoder, samples)
        if config.connector != "query" and features % config.vectors:
            raise ConfigError(
                f"ecg_input.vectors: {config.vectors} found, a divisor of {features} expected, the features of encoder.kind "
                f"'{encoder.kind}'; ecg_input.connector 'query' makes any number"
            )
