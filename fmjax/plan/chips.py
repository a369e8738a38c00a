"""What the makers publish of their chips: the figures that a roofline is drawn from."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, which is one JAX device.

    Attributes:
      name: as people write it.
      platform: JAX's: "tpu" or "cuda".
      flops: dense bf16 matmul FLOP/s.
      int8_ops: dense int8 matmul operations/s; equals `flops` where int8 is no faster.
      hbm: bytes of memory that a program can use.
      bandwidth: bytes/s between memory and chip.
      interconnect: bytes/s into a chip over all its links together: half of what is published as
        bidirectional.
      source: of the figures.
    """

    name: str
    platform: str
    flops: float
    int8_ops: float
    hbm: int
    bandwidth: float
    interconnect: float
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"

# A TPU's usable memory is what its compiler allows a program (libtpu 0.0.52: "… of 15.75G hbm");
# the rest of the published 16, 32 and 95 GB is the runtime's. A GPU's is 90 % of the published
# memory: the share that XLA can be told to take (XLA_PYTHON_CLIENT_MEM_FRACTION=0.9) beside the
# CUDA context and the collectives' buffers.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 275e12, int(30.75 * GIB), 1228e9, 300e9, _TPU + "v4"),
        Chip("v5e", "tpu", 197e12, 393e12, int(15.75 * GIB), 819e9, 200e9, _TPU + "v5e"),
        Chip("v5p", "tpu", 459e12, 918e12, int(95.73 * GIB), 2765e9, 600e9, _TPU + "v5p"),
        Chip("v6e", "tpu", 918e12, 1836e12, int(31.24 * GIB), 1638e9, 400e9, _TPU + "v6e"),
        Chip(
            "h100",
            "cuda",
            989e12,
            1979e12,
            int(0.9 * 80e9),
            3350e9,
            450e9,
            "https://www.nvidia.com/en-us/data-center/h100/ (SXM, without sparsity)",
        ),
        Chip(
            "a100",
            "cuda",
            312e12,
            624e12,
            int(0.9 * 80e9),
            2039e9,
            300e9,
            "https://www.nvidia.com/en-us/data-center/a100/ (SXM 80 GB, without sparsity)",
        ),
    )
}
