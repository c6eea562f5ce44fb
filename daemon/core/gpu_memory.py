"""How full the GPUs are.

Owns where that is read: from torch's own books, which it keeps without asking the device, so that a GPU that hangs
does not hang whoever asks. Knows nothing of engines. Where torch was not loaded, or uses no GPU, there is nothing to
tell; nothing is loaded in order to say so.
"""

from __future__ import annotations

import sys
from typing import Any

from daemon.common.metrics import GpuMemory


def memory() -> dict[str, GpuMemory]:
    """Device, as in `models.device` -> its memory; only those that this process uses."""
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
