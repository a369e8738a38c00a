"""What a run's representations can do, measured along the way and in the end."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import logical
from fmjax.evals import Figure, Retrieval, collect, knn, retrieval, whiten
from fmjax.parallel import shard_batch
from fmjax.recipes.layout import Layout
from fmjax.recipes.vision.image_sets import Pictures
from fmjax.recipes.vision.learner import Learner
from fmjax.recipes.vision.settings import Probing
from fmjax.train import TrainState

KS = (1, 5, 10)
# Side to which larger pictures are scaled down before their pixels are compared: a bank of whole
# ones would not fit.
PIXELS = 32
LABELLED = ("accuracy", "top5_accuracy", "loss")
Embed = Callable[[Mapping[str, jax.Array]], jax.Array]


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
        return self.learner.features is not None and len(self.pictures.classes) > 1

    @property
    def retrieves(self) -> bool:
        """Whether pictures and captions are to find each other."""
        return self.learner.needs == "captions"

    def accuracy(self, state: TrainState) -> Figure:
        """Of the class that the nearest training pictures vote for, by the model's features."""
        return self._vote(self._features(state))

    def compared(self, state: TrainState, raw: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(f32[N, D], f32[B, D]): as `accuracy` compares them, the training pictures that held-out
        ones are compared with, and a raw batch that this process has whole."""
        features = self._features(state)
        some = _filled(raw, self.layout.mesh.size)
        both = [self._collected(of, features)[0] for of in (self.pictures.bank, [some])]
        return self._whitened(*both) if self.probing.whiten else tuple(both)

    def retrieval(self, state: TrainState) -> Retrieval:
        """Held-out pictures and captions find each other."""
        return retrieval(*self.embeddings(state), ks=KS)

    def embeddings(self, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        """(pictures f32[N, P], captions f32[N, P]) of what is held out, in order."""

        def both(batch: Mapping[str, jax.Array]) -> jax.Array:
            return self._two(state.variables, batch)

        pairs = self._collected(self.pictures.held_out, both)[0]
        return tuple(np.split(pairs, 2, axis=1))

    def summary(
        self, state: TrainState, before: Figure | None, last: Mapping[str, float]
    ) -> Iterable[str]:
        """The last figures beside what says nothing.

        Args:
          state: the last.
          before: `accuracy` before the first step.
          last: figures of the objective's own on what is held out, by name.
        """
        if self.learner.needs == "labels":
            yield ", ".join(f"{name} {last[name]:.4f}" for name in LABELLED if name in last)
        if self.votes:
            ours = self.accuracy(state)
            others = {"pixels": self._vote(self._pixels, whitened=False)}
            if self.probing.whiten:
                others["whitened pixels"] = self._vote(self._pixels)
            if before is not None:
                others["encoder before training"] = before
            beside = ", ".join(f"{name} {figure}" for name, figure in others.items())
            yield f"accuracy of the {self.neighbours} nearest neighbours: {ours}; {beside}"
            margin = ours.value - max(figure.value for figure in others.values())
            yield f"margin over the best of these: {margin:+.3f}"
        if self.retrieves:
            found = self.retrieval(state)
            for name in ("image_to_text", "text_to_image"):
                way = getattr(found, name)
                figures = ", ".join(
                    f"R@{k} {way.recall[k]} (chance {way.chance[k]:.3f})" for k in KS
                )
                yield f"{name.replace('_', ' ')}: {figures}; median rank {way.median_rank:g}"

    def _vote(self, features: Embed, whitened: bool = True) -> Figure:
        bank, labels = self._collected(self.pictures.bank, features)
        queries, truth = self._collected(self.pictures.held_out, features)
        if whitened and self.probing.whiten:
            bank, queries = self._whitened(bank, queries)
        k = min(self.neighbours, len(bank))  # of a small set some may be unreadable
        return knn(bank, labels, queries, truth, ks=(k,))[k]

    def _whitened(self, bank: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return whiten(bank, queries, min(self.probing.whiten, len(bank) - 1, bank.shape[1]))

    def _collected(self, batches: Iterable[Any], features: Embed) -> Any:
        return collect(lambda batch: batch["features"], self._over(batches, features))

    def _over(self, batches: Iterable[Any], features: Embed) -> Iterator[dict[str, jax.Array]]:
        """Features, labels and weights of each batch: all processes get those of all rows."""
        names = ("labels", "example_weight")
        for batch in batches:
            placed = shard_batch(dict(batch), self.layout.mesh, self.layout.rules)
            found = {name: placed[name] for name in names if name in placed}
            yield self._everywhere({"features": features(placed), **found})

    @functools.cached_property
    def _everywhere(self) -> Any:
        replicated = jax.sharding.NamedSharding(self.layout.mesh, jax.sharding.PartitionSpec())
        return jax.jit(lambda arrays: arrays, out_shardings=replicated)

    def _features(self, state: TrainState) -> Embed:
        return lambda batch: self._encoded(state.variables, state.extra, batch)

    @functools.cached_property
    def _encoded(self) -> Any:
        @jax.jit
        def run(variables: Any, extra: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            with logical.use(self.layout.mesh, self.layout.rules):
                pixels = self.pictures.whole(batch)["pixel_values"]
                return self.learner.features(variables, extra, pixels).astype(jnp.float32)

        return run

    @functools.cached_property
    def _pixels(self) -> Embed:
        @jax.jit
        def run(batch: Mapping[str, jax.Array]) -> jax.Array:
            # As they are seen on screen: not less their mean, which moves cosines.
            with logical.use(self.layout.mesh, self.layout.rules):
                pixels = self.pictures.unscaled(batch)["pixel_values"]
            B, H, W, C = pixels.shape
            if max(H, W) > PIXELS:
                pixels = jax.image.resize(pixels, (B, PIXELS, PIXELS, C), "linear")
            return pixels.reshape(B, -1)

        return run

    @functools.cached_property
    def _two(self) -> Any:
        @jax.jit
        def run(variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            """[B, 2 P]: of the picture, then of its caption."""
            with logical.use(self.layout.mesh, self.layout.rules):
                seen = self.pictures.whole(batch)
                names = ("pixel_values", "input_ids", "attention_mask")
                inputs = {name: seen[name] for name in names if name in seen}
                out = self.learner.module.apply(variables, **inputs)
                both = (out.image_embeds, out.text_embeds)
                return jnp.concatenate([x.astype(jnp.float32) for x in both], -1)

        return run


def _filled(raw: Mapping[str, Any], multiple: int) -> dict[str, np.ndarray]:
    """The batch with its last row again, of weight 0, until devices can share it."""
    rows = np.arange(-(-len(raw["example_weight"]) // multiple) * multiple)
    real = rows < len(raw["example_weight"])
    filled = {name: np.take(x, rows, 0, mode="clip") for name, x in raw.items()}
    return filled | {"example_weight": filled["example_weight"] * real}
