"""GPUs as XLA's compiler wants them described, where there is none to ask.

The figures are the makers' (CUDA C++ programming guide, technical specifications per compute
capability; data sheets of H100 SXM and A100 SXM 80 GB).
"""

from fmjax.plan.chips import Chip

_SHARED = """
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536"""

_OWN = {
    "h100": """
  core_count: 132
  fpus_per_core: 128
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 80000000000
  cuda_compute_capability { major: 9 minor: 0 }""",
    "a100": """
  core_count: 108
  fpus_per_core: 64
  shared_memory_per_core: 167936
  shared_memory_per_block_optin: 166912
  l2_cache_size: 41943040
  clock_rate_ghz: 1.41
  device_memory_size: 80000000000
  cuda_compute_capability { major: 8 minor: 0 }""",
}


def target_config(chip: Chip) -> str:
    """A `GpuTargetConfigProto` as text: what `get_topology_desc` takes for `target_config`."""
    return f"""gpu_device_info {{{_SHARED}{_OWN[chip.name]}
  memory_bandwidth: {chip.bandwidth:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "NVIDIA {chip.name.upper()}"
"""
