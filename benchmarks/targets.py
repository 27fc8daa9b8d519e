"""Devices to compile for: those of this machine, or those of an accelerator that it lacks.

A target is "cpu", "tpu:<topology>" (for example "tpu:v5e:2x4") or "gpu:h100:<number>". Programs for
accelerators compile on any Linux machine, and cannot run there. TPUs need the dependency group
`tpu-compiler`, GPUs need `gpu-compiler`.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.experimental import topologies

# As XLA describes the card: what its compiler needs to know of an H100 with 80 GB.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# libtpu asks a metadata server about the machine, and locks the TPU, unless told otherwise.
_TPU_ENVIRONMENT = MappingProxyType(
    {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_MIN_LOG_LEVEL": "2",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
)


def platform(target: str) -> str:
    """JAX's name of the platform: "cpu", "tpu" or "cuda"."""
    kind = target.partition(":")[0]
    return {"cpu": "cpu", "tpu": "tpu", "gpu": "cuda"}.get(kind) or _unknown(target)


def devices(target: str) -> list[Any]:
    """The devices of a target.

    Raises:
        ValueError: the target is unknown.
        ModuleNotFoundError: its compiler is not installed.
    """
    kind, _, rest = target.partition(":")
    if kind == "cpu":
        return list(jax.devices("cpu"))
    missing = missing_compiler(target)
    if missing:
        raise ModuleNotFoundError(missing)
    if kind == "tpu":
        for name, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        return list(topologies.get_topology_desc(platform="tpu", topology_name=rest).devices)
    card, _, number = rest.partition(":")
    if kind != "gpu" or card != "h100" or not number.isdecimal():
        _unknown(target)
    described = topologies.get_topology_desc(
        platform="cuda", target_config=_H100, topology=f"1x1x{number}"
    )
    return list(described.devices)


def compiler_options(target: str) -> Mapping[str, str]:
    """Options of `Lowered.compile` for a target: where the assembler of GPUs is."""
    if platform(target) != "cuda":
        return {}
    package = importlib.util.find_spec("nvidia.cuda_nvcc")
    found = [] if package is None else list(package.submodule_search_locations or [])
    return {"xla_gpu_cuda_data_dir": str(Path(found[0]))} if found else {}


def missing_compiler(target: str) -> str:
    """How to install the compiler of a target, or "" if it is installed."""
    modules = {"tpu": ["libtpu"], "gpu": ["jax_cuda12_plugin", "nvidia.cuda_nvcc"]}
    kind = target.partition(":")[0]
    missing = [name for name in modules.get(kind, []) if not _installed(name)]
    if not missing:
        return ""
    return f"{target} needs {', '.join(missing)}: uv sync --group {kind}-compiler"


def _installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _unknown(target: str) -> Any:
    """Raises ``ValueError``."""
    raise ValueError(f"target={target!r} is unknown; use cpu, tpu:<topology> or gpu:h100:<number>")
