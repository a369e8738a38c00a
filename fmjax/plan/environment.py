"""What has to be set before JAX is initialised; importing this imports no JAX."""

import os

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    # No look for a TPU, nor for a cloud's metadata server.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # Planning touches no chip, so it needs no lock on one.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def prepare() -> None:
    """Sets the environment for planning: the machine's own computation stays on its CPU.

    Call it before JAX is imported. What is set already is left as it is.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
