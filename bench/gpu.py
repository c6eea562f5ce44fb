"""How busy the GPUs are while something runs, as `nvidia-smi` reports it.

Owns the sampling. Knows nothing of what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_QUERY = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--loop=1")


@dataclass(slots=True)
class Use:
    """The use of the GPUs while something runs.

    Attributes:
        shares: how busy they are, 0 to 1, a sample a second.
        megabytes: the most memory in use.
    """

    shares: list[float] = field(default_factory=list)
    megabytes: float = 0.0

    def __str__(self) -> str:
        return f"{statistics.mean(self.shares):.0%}, {self.megabytes:.0f} MB" if self.shares else "none"


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Use]:
    """Sample the GPUs for as long as the block runs; nothing where there is none."""
    use = Use()
    program = shutil.which("nvidia-smi")
    if program is None:
        yield use
        return
    process = await asyncio.create_subprocess_exec(program, *_QUERY, stdout=PIPE)
    reading = asyncio.create_task(_read(process, use))
    try:
        yield use
    finally:
        process.terminate()
        await reading
        await process.wait()


async def _read(process: asyncio.subprocess.Process, use: Use) -> None:
    assert process.stdout is not None, "it was piped"
    async for line in process.stdout:
        with contextlib.suppress(ValueError):  # a figure that this GPU does not tell is "[N/A]"
            share, megabytes = (float(part) for part in line.decode().split(","))
            use.shares.append(share / 100)
            use.megabytes = max(use.megabytes, megabytes)
