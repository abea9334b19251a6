"""What training can use on the machine that we run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.cores import cores


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Processor cores and GPUs."""

    cores: int
    gpus: int

    @property
    def kind(self) -> Literal["cpu", "gpu"]:
        """The device that trains."""
        return "gpu" if self.gpus else "cpu"

    @classmethod
    def this(cls) -> Machine:
        """The machine we run on."""
        import torch

        return cls(cores=cores(), gpus=torch.cuda.device_count())

    def __str__(self) -> str:
        count, unit = (self.gpus, "GPU") if self.gpus else (self.cores, "core")
        return f"{count} {unit}" + ("s" if count > 1 else "")
