"""What each arm is fine-tuned on: drawn once, and kept until it is.

Sets by name: an arm's own images ("<arm>"); the source images that all arms of a seed share
("source_half"); random images for a reference estimator ("reference_half"); the random part of
arms whose generator makes only a share of their images ("posegen_random", and "<arm>_random" of a
variant that draws otherwise).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from posegen_ray.arms import (
    GENERATED,
    MINED,
    POSEGEN,
    RANDOM,
    SOURCE,
    Arm,
    arm_named,
    draws_at_random_like,
    own_images,
    rendered_for_feedback,
    trained_arms,
)
from posegen_ray.config import RunConfig
from posegen_ray.datasets.kept import KeptSamples
from posegen_ray.drawing import Drawing, Seeds
from posegen_ray.generation import losses
from posegen_ray.notes import SampleNotes
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.studio import Counts, Patience

SOURCE_HALF = "source_half"
REFERENCE_HALF = "reference_half"
_RANDOM_PART = "_random"

# a seed's trained generators of an arm, oldest first
Generators = Callable[[int, str], Sequence[dict[str, Tensor]]]


class ArmImages:
    """The training images of a run's arms and seeds, in `folder`.

    Args:
        arms: those that are fine-tuned.
        generators: asked when an arm's own images are drawn.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        drawing: Drawing,
        notes: SampleNotes,
        folder: Path,
        generators: Generators,
    ) -> None:
        self.arms = arms
        self.drawing = drawing
        self.config = drawing.config
        self.notes = notes
        self.folder = folder
        self._generators = generators

    def kept(self, name: str, seed: int) -> KeptSamples:
        """A set; drawn when it is not there."""
        if not self.has(name, seed):
            self._draw_set(name, seed)
        return KeptSamples(str(self._path(name, seed).absolute()))

    def has(self, name: str, seed: int) -> bool:
        """Whether a set is drawn."""
        return self._path(name, seed).exists()

    def remove(self, name: str, seed: int) -> None:
        """Gives a set's disk space back."""
        shutil.rmtree(self._path(name, seed))

    def random_part(self, arm: str) -> str:
        """The set of an arm's images that are drawn at random: PoseGen's, where it is the same."""
        found = arm_named(trained_arms(self.arms), arm)
        own = found is not None and not draws_at_random_like(found, self.config)
        return (arm if own else POSEGEN) + _RANDOM_PART

    def _path(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-{seed}"

    def _draw_set(self, name: str, seed: int) -> None:
        own = arm_named(self.arms, name)
        samples, counts = self._draw_own(own, seed) if own else self._draw_part(name, seed)
        self.notes.samples(f"{name}-{seed}", samples)
        self.notes.counts(f"{name}-{seed}", counts)
        rendered = samples.rendered()  # the others' errors cannot be told
        if own and len(rendered):
            self.notes.errors(f"{name}-{seed}", rendered, *self.drawing.errors(rendered))
        KeptSamples.write(samples, self._path(name, seed))

    def _stream(self, name: str, seed: int) -> Seeds:
        return Seeds(self.config.seed + seed, f"{name} half")

    @property
    def _shared(self) -> int:
        """How many source images all arms share."""
        return self.config.experiment.images_per_arm // 2

    @property
    def _own(self) -> int:
        """How many images are an arm's own."""
        return own_images(self.config)

    def _draw_part(self, name: str, seed: int) -> tuple[Samples, Counts]:
        """A set that is no arm's own half."""
        if name == SOURCE_HALF:
            return self.drawing.draw(SOURCE, self._shared, self._stream("source", seed))
        if name == REFERENCE_HALF:
            return self.drawing.draw(RANDOM, self._shared, self._stream("reference", seed))
        settings = self._settings_of(name.removesuffix(_RANDOM_PART))
        count = self._own - round(self._own * settings.generator.share)
        # the first of what the arm "random" draws: the same images, so chance tells them less apart
        return self._draw_good(RANDOM, count, self._stream("random", seed), (), settings)

    def _draw_own(self, arm: Arm, seed: int) -> tuple[Samples, Counts]:
        """An arm's own images."""
        stream, count = self._stream(arm.name, seed), self._own
        if arm.kind == MINED:
            return self._mine(count, count + rendered_for_feedback(self.config), seed, stream)
        states: Sequence[dict[str, Tensor]] = ()
        if arm.kind == GENERATED:
            # the later half of training: hard in more than one way, and no longer naive
            generators = self._generators(seed, arm.name)
            states = generators[len(generators) // 2 :]
            count = round(count * arm.config.generator.share)
        count += arm.more
        samples, counts = self._draw_good(arm.kind, count, stream, states, arm.config)
        if arm.kind == GENERATED and arm.config.generator.share < 1:
            random = self.kept(self.random_part(arm.name), seed).get()
            samples = concatenate_samples([samples, random])
        return samples, counts

    def _draw_good(
        self,
        kind: str,
        count: int,
        stream: Seeds,
        states: Sequence[dict[str, Tensor]],
        config: RunConfig,
    ) -> tuple[Samples, Counts]:
        """As `draw`, less the ambiguous ones where they are not wanted."""
        if not config.validity.unambiguous:
            return self.drawing.draw(kind, count, stream, states, config)
        parts: list[Samples] = []
        counts: Counter[str] = Counter()
        patience = Patience(f"unambiguous {kind}")
        while (have := sum(map(len, parts))) < count:
            samples, more = self.drawing.draw(kind, count - have, stream, states, config)
            ambiguous = self.drawing.errors(samples)[1] & ~samples.photographs
            good = (~ambiguous).nonzero()[:, 0].tolist()
            patience.note(count - have, len(good), {**more, "ambiguous": len(samples)})
            parts.append(samples[good])
            counts.update(more)
            counts["ambiguous"] += len(samples) - len(good)
            counts["valid"] -= len(samples) - len(good)
        return concatenate_samples(parts), dict(counts)

    def _settings_of(self, arm: str) -> RunConfig:
        """An arm's settings; PoseGen's own where no arm is compared (`posegen train`)."""
        found = arm_named(trained_arms(self.arms), arm)
        return found.config if found else self.config

    def _mine(self, count: int, pool: int, seed: int, stream: Seeds) -> tuple[Samples, Counts]:
        """Of a pool of random images those that PoseGen's feedback pays best.

        It is the starting estimator that errs; the pool stands for what a generator proposes
        before it is trained.
        """
        samples, counts = self.drawing.draw(RANDOM, pool, stream)
        weights = losses.joint_weights(self.config.feedback.joint_weights)
        errors, ambiguous = self.drawing.errors(samples, weights)
        feedback = self.config.feedback
        usual = errors
        if feedback.band_of != "prior":
            half = self.kept(SOURCE_HALF, seed).get().rendered()
            usual, _ = self.drawing.errors(half, weights)
        reference = float(usual.median())
        payments = losses.feedback_payment(errors, reference, feedback)
        if not feedback.pay_ambiguous:
            payments = payments * ~ambiguous
        # equal payments (all above the band's end, say) are taken in the order of drawing
        best = payments.argsort(descending=True, stable=True)[:count].sort().values.tolist()
        return samples[best], counts
