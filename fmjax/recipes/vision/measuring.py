"""What a run's representations can do, measured along the way and in the end."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import logical
from fmjax.evals import Figure, Retrieval, collect, knn, retrieval
from fmjax.parallel import shard_batch
from fmjax.recipes.layout import Layout
from fmjax.recipes.vision.image_sets import Pictures
from fmjax.recipes.vision.learner import Learner
from fmjax.recipes.vision.settings import Probing
from fmjax.train import TrainState

KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Measure:
    """`measure(state)` gives figures by name; nothing where the pictures have neither labels nor
    captions, or the objective's own figures say it already."""

    learner: Learner
    pictures: Pictures
    probing: Probing
    layout: Layout
    neighbours: int

    @classmethod
    def of(
        cls, learner: Learner, pictures: Pictures, probing: Probing, layout: Layout
    ) -> "Measure":
        """For a run."""
        k = min(probing.neighbours, pictures.examples, probing.bank)
        return cls(learner, pictures, probing, layout, k)

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        """knn: accuracy of the vote of the neighbours; or R@k both ways."""
        if self.votes:
            return {f"knn{self.neighbours}": self.accuracy(state).value}
        if self.retrieves:
            found = self.retrieval(state)
            return {
                f"{name}_r@{k}": getattr(found, name).recall[k].value
                for name in ("image_to_text", "text_to_image")
                for k in KS
            }
        return {}

    @property
    def votes(self) -> bool:
        """Whether neighbours are asked for the class of a picture."""
        return self.learner.features is not None and bool(self.pictures.classes)

    @property
    def retrieves(self) -> bool:
        """Whether pictures and captions are to find each other."""
        return self.learner.needs == "captions"

    def accuracy(self, state: TrainState) -> Figure:
        """Of the class that the nearest training pictures vote for, by the model's features."""
        embed = functools.partial(self._features, state.variables, state.extra)
        return self._vote(embed)

    def features(self, state: TrainState, batch: Mapping[str, Any]) -> np.ndarray:
        """f32[B, D] of a raw batch."""
        return np.asarray(self._features(state.variables, state.extra, batch))

    def pixels(self) -> Figure:
        """The same by the pixels themselves."""
        return self._vote(lambda batch: self._pixels(self._placed(batch)))

    def untrained(self, state: TrainState) -> Figure | None:
        """`accuracy` before the first step; None where nothing votes."""
        return self.accuracy(state) if self.votes and not self._resumes(state) else None

    def retrieval(self, state: TrainState) -> Retrieval:
        """Held-out pictures and captions find each other."""
        parts = [self.pairs(state.variables, batch) for batch in self.pictures.held_out]
        images, texts, weights = (np.concatenate(x) for x in zip(*parts, strict=True))
        real = weights > 0
        return retrieval(images[real], texts[real], ks=KS)

    def summary(self, state: TrainState, untrained: Figure | None) -> Iterable[str]:
        """The last figures beside what says nothing."""
        if self.votes:
            ours, pixels = self.accuracy(state), self.pixels()
            line = f"accuracy of the {self.neighbours} nearest neighbours: {ours}; pixels {pixels}"
            line += "" if untrained is None else f", untrained encoder {untrained}"
            yield line
            others = [pixels.value] + ([untrained.value] if untrained else [])
            yield f"margin over the better of these: {ours.value - max(others):+.3f}"
        if self.retrieves:
            found = self.retrieval(state)
            for name in ("image_to_text", "text_to_image"):
                way = getattr(found, name)
                figures = ", ".join(
                    f"R@{k} {way.recall[k]} (chance {way.chance[k]:.3f})" for k in KS
                )
                yield f"{name.replace('_', ' ')}: {figures}; median rank {way.median_rank:g}"

    def _resumes(self, state: TrainState) -> bool:
        return int(state.step) > 0

    def _vote(self, embed: Any) -> Figure:
        bank = collect(embed, self.pictures.bank)
        queries = collect(embed, self.pictures.held_out)
        return knn(*bank, *queries, ks=(self.neighbours,))[self.neighbours]

    def _placed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return shard_batch(dict(batch), self.layout.mesh, self.layout.rules)

    def _features(self, variables: Any, extra: Any, batch: Mapping[str, Any]) -> jax.Array:
        return self._compiled(variables, extra, self._placed(batch))

    @functools.cached_property
    def _everywhere(self) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(self.layout.mesh, jax.sharding.PartitionSpec())

    @functools.cached_property
    def _compiled(self) -> Any:
        @functools.partial(jax.jit, out_shardings=self._everywhere)
        def run(variables: Any, extra: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            with logical.use(self.layout.mesh, self.layout.rules):
                pixels = self.pictures.whole(batch)["pixel_values"]
                return self.learner.features(variables, extra, pixels).astype(jnp.float32)

        return run

    @functools.cached_property
    def _pixels(self) -> Any:
        @functools.partial(jax.jit, out_shardings=self._everywhere)
        def run(batch: Mapping[str, jax.Array]) -> jax.Array:
            # As they are seen on screen: not less their mean, which moves cosines.
            pixels = self.pictures.unscaled(batch)["pixel_values"]
            return pixels.reshape(len(pixels), -1)

        return run

    def pairs(self, variables: Any, batch: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        """(pictures f32[B, P], captions f32[B, P], weights f32[B]) of a held-out batch."""
        images, texts = jax.device_get(self._two(variables, self._placed(batch)))
        return images, texts, np.asarray(batch["example_weight"])

    @functools.cached_property
    def _two(self) -> Any:
        @functools.partial(jax.jit, out_shardings=self._everywhere)
        def run(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            with logical.use(self.layout.mesh, self.layout.rules):
                seen = self.pictures.whole(batch)
                names = ("pixel_values", "input_ids", "attention_mask")
                inputs = {name: seen[name] for name in names if name in seen}
                out = self.learner.module.apply(variables, **inputs)
                return out.image_embeds.astype(jnp.float32), out.text_embeds.astype(jnp.float32)

        return run
