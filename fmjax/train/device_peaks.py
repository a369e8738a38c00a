"""Published peak arithmetic of accelerators, to express a measured speed as utilisation."""

import jax

# Dense bf16 matmul FLOP/s (fp16 where a GPU has no bf16) of one JAX device, from the makers' data
# sheets without sparsity. A device of TPU v2, v3 and 7x is one of a chip's two cores.
PEAKS: tuple[tuple[str, float], ...] = (
    ("TPU v2", 23e12),
    ("TPU v3", 61.5e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU7x", 1153.5e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
)


def peak_flops(device: jax.Device | str) -> float | None:
    """Peak FLOP/s of a device (or of a `device_kind`); None where unknown, as for CPUs.

    The first entry whose name occurs as a word in the kind counts.
    """
    kind = device if isinstance(device, str) else device.device_kind
    words = f" {kind.replace('-', ' ')} ".lower()
    for name, peak in PEAKS:
        if f" {name.lower()} " in words:
            return peak
    return None
