"""The systems that the headline comparison is between: what each is, and its settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ecgbyte_jax.encoders.config import EncoderConfig, count_features
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.settings import Settings

_PATCHED = ("mtae", "st_mem")  # encoders whose patches have a length of their own
_SIZES = {"merl": "resnet101"}  # as published; of the others "base"


@dataclass(frozen=True)
class System:
    """What a decoder is given of an ECG: `ecg_input.kind`, the kind of its encoder, whether that stays random.

    ecg: what it is trained and asked with, `data.ecg` and `eval.ecg`.
    """

    what: str
    kind: str = "tokens"
    encoder: str = ""
    random: bool = False
    ecg: str = "own"

    @property
    def stages(self) -> int:
        """How many trainings it takes."""
        return 2 if self.encoder and not self.random else 1


SYSTEMS = {
    "tokens": System("tokens of byte pair encoding, as in ECG-Byte"),
    "elf_base": System("a linear map of the segment", "elf_base"),
    "elf_patch": System("a linear map of each span of the segment", "elf_patch"),
    "elf_conv": System("two convolutions of the segment", "elf_conv"),
    "merl": System("MERL: a ResNet that agrees with reports", "encoder", "merl"),
    "st_mem": System("ST-MEM: an autoencoder of masked spans of leads", "encoder", "st_mem"),
    "mtae": System("MTAE: an autoencoder of masked spans of time", "encoder", "mtae"),
    "mlae": System("MLAE: an autoencoder of masked leads", "encoder", "mlae"),
    "vit": System("ViT: an autoencoder of masked squares of the ECG's picture", "encoder", "vit"),
    "clip": System("CLIP: a reader of the ECG's picture that agrees with reports", "encoder", "clip"),
    "random": System("a random ResNet, frozen", "encoder", "merl", random=True),
    "none": System("no ECG at all", ecg="none"),
}


def check_systems(settings: Settings) -> None:
    """Raises ConfigError for systems that are unknown, there twice or impossible, and where the experiment itself is one."""
    names, seeds = settings.headline.systems, settings.headline.seeds
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise ConfigError(f"headline.systems: {unknown} found, some of {(*SYSTEMS,)} expected")
    if len(set(names)) < len(names) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"headline: systems {names} and seeds {seeds} found, none twice expected")
    if not settings.train.valid_answers:
        raise ConfigError("train.valid_answers: 0 found, with which no curve of the headline can be drawn; above 0 expected")
    if len(settings.eval.seeds) > 1:
        raise ConfigError(f"eval.seeds: {settings.eval.seeds} found, one expected: the headline's trainings have seeds instead")
    if settings.ecg_input.kind != "tokens" or settings.data.ecg != "own" or settings.eval.ecg != "own" or settings.eval.name:
        raise ConfigError(
            "headline: ecg_input.kind 'tokens', data.ecg and eval.ecg 'own' and no eval.name expected: the stage sets them"
        )
    if settings.encoder.pretrained:
        raise ConfigError(
            f"encoder.pretrained: '{settings.encoder.pretrained}' found, '' expected: the headline trains every encoder, since "
            "that counts into the costs"
        )
    if settings.eval.checkpoint not in ("last", "best"):
        raise ConfigError(
            f"eval.checkpoint: '{settings.eval.checkpoint}' found, 'last' or 'best' expected: the costs are of whole trainings"
        )
    for name in chosen(settings):
        settings_of(settings, name, max(seeds))


def chosen(settings: Settings) -> Sequence[str]:
    """The names of the systems of `headline.systems`; all where there are none."""
    return settings.headline.systems or (*SYSTEMS,)


def settings_of(settings: Settings, name: str, seed: int) -> Settings:
    """The experiment with a system in place of its own, and the seed of its training.

    An encoder is tiny where that of the experiment is, and otherwise of its published size. A linear or an MLP connector makes
    the most vectors, up to `ecg_input.vectors`, that divide the encoder's features. What is trained without ECGs is asked
    without them, in an evaluation with a name. Raises ConfigError as `check_vectors` does.
    """
    system = SYSTEMS[name]
    encoder = _encoder(settings.encoder, system) if system.encoder else settings.encoder
    vectors = settings.ecg_input.vectors
    if system.kind == "encoder" and settings.ecg_input.connector != "query":
        features = count_features(encoder, settings.signal.segment_length)
        vectors = max(count for count in range(1, min(vectors, features) + 1) if features % count == 0)
    elif system.kind in ("elf_base", "elf_conv"):
        vectors = 1
    train_encoder = settings.ecg_input.train_encoder and not system.random
    asked = {} if system.ecg == "own" else {"ecg": system.ecg, "name": f"ecg_{system.ecg}", "perturb": ()}
    return replace(
        settings,
        seed=seed,
        data=replace(settings.data, seed=settings.data_seed, ecg=system.ecg),
        encoder=encoder,
        ecg_input=replace(settings.ecg_input, kind=system.kind, vectors=vectors, train_encoder=train_encoder),
        eval=replace(settings.eval, **asked),
    )


def _encoder(given: EncoderConfig, system: System) -> EncoderConfig:
    return replace(
        given,
        kind=system.encoder,
        size="tiny" if given.size == "tiny" else _SIZES.get(system.encoder, "base"),
        patch=given.patch if system.encoder in _PATCHED else 0,
        text_encoder=given.text_encoder if system.encoder == "merl" else "",
        published_crop=given.published_crop and system.encoder == given.kind,
        weights=given.weights if system.encoder == given.kind else "",
        pretrained="random" if system.random else "",
    )
