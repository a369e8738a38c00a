"""Batch normalisation (arXiv:1502.03167), its statistics over the global batch.

The running statistics are parameters by place and not by nature: leaves "running_mean",
"running_var" and "num_batches_tracked" beside scale and bias, so that files, sharding and
checkpoints need nothing new. No loss depends on them in training, so their gradient is zero; what
a batch makes of them comes back in the collection `COLLECTION`, under the same paths, and
`fmjax.objectives.BatchStatistics` puts it in their place after the update.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.nn.param import param

COLLECTION = "batch_stats"


class BatchNorm(nn.Module):
    """(x − mean) / std · scale + bias, per channel (the last axis), in float32.

    With a "dropout" key, which is how training is told from evaluation everywhere, mean and
    (biased) variance are those of the batch, of all devices together; without one the running
    ones, as in torch.

    Attributes:
      epsilon: added to the variance.
      momentum: share of the batch in the new running statistics, in which the variance is the
        unbiased one.
      use_bias: adds a bias.
      execution: precision.

    Raises:
      ConfigError: in training, statistics that nobody takes.
      DataError: in training, a single value a channel, whose variance is nothing.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    use_bias: bool = True
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex, shape, init = self.execution, (x.shape[-1],), nn.initializers

        def vector(name: str, value: nn.initializers.Initializer) -> jax.Array:
            return param(self, name, value, shape, ("norm",), ex.param_dtype).astype(jnp.float32)

        scale = vector("scale", init.ones)
        bias = vector("bias", init.zeros) if self.use_bias else 0.0
        mean = vector("running_mean", init.zeros)
        variance = vector("running_var", init.ones)
        # float32, whatever the others are: it counts to 2²⁴.
        batches = param(self, "num_batches_tracked", init.zeros, (), (), jnp.float32)
        x32 = x.astype(jnp.float32)
        if self.has_rng("dropout") and not self.is_initializing():
            old = (mean, variance)
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x32, axes)
            variance = jnp.mean(jnp.square(x32 - mean), axes)
            self._keep(old, (mean, variance), batches, x.size // x.shape[-1])
        y = (x32 - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
        return y.astype(ex.dtype)

    def _keep(
        self,
        old: tuple[jax.Array, jax.Array],
        of_batch: tuple[jax.Array, jax.Array],
        batches: jax.Array,
        values: int,
    ) -> None:
        path = "/".join(self.path)
        if not self.is_mutable_collection(COLLECTION):
            raise ConfigError(
                f"{path}: training changes the running statistics of batch normalisation, and "
                "nobody takes the new ones; put BatchStatistics(…) around the objective"
            )
        if values < 2:
            raise DataError(
                f"{path}: the batch has one value a channel, whose variance is 0; use a larger "
                "batch or larger images"
            )
        mean, variance = (jax.lax.stop_gradient(x) for x in of_batch)
        new = (mean, variance * (values / (values - 1)))
        for name, before, now in zip(("running_mean", "running_var"), old, new, strict=True):
            running = (1 - self.momentum) * before + self.momentum * now
            self.put_variable(COLLECTION, name, running.astype(self.execution.param_dtype))
        self.put_variable(COLLECTION, "num_batches_tracked", batches + 1)
