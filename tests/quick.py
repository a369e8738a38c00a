"""Compiler options for programs that run once: quick to compile, slow to run."""

import jax


def _known(options: dict[str, object]) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


QUICK: dict[str, object] = {"xla_backend_optimization_level": 0}
# Newer JAX no longer has this one.
if _known({"xla_cpu_use_fusion_emitters": False}):
    QUICK["xla_cpu_use_fusion_emitters"] = False
