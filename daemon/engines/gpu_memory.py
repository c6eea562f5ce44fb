"""How full the GPUs are.

Owns where that is read: in torch's own records, which do not ask the device, so that a GPU that hangs does not hang its
reader. Knows nothing of engines. Where torch is not loaded, or uses no GPU, there is nothing to report, and torch is
not loaded for it.
"""

from __future__ import annotations

import sys
from typing import Any

from daemon.common.metrics import GpuMemory


def memory() -> dict[str, GpuMemory]:
    """Return the memory of the GPUs that this process uses, by their names in `models.device`."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {f"cuda:{index}": _memory(torch, index) for index in range(torch.cuda.device_count()) if _used(torch, index)}


def _used(torch: Any, index: int) -> bool:
    return bool(torch.cuda.memory_reserved(index))


def _memory(torch: Any, index: int) -> GpuMemory:
    return GpuMemory(
        used=torch.cuda.memory_allocated(index),
        held=torch.cuda.memory_reserved(index),
        total=torch.cuda.get_device_properties(index).total_memory,
    )
