"""Where the computation runs and in which precision; decided once, and said with the reason."""

import contextlib
import platform
from dataclasses import dataclass

import torch

from pqvae import __version__, distributed
from pqvae.errors import UserError, is_out_of_memory


def select_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the first of cuda, mps, cpu that is there.

    Of several processes on one machine, each gets a GPU of its own.

    Raises:
        UserError: No such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return select_device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{distributed.local_rank()}" if name == "cuda" else name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"device {name!r} cannot be used here; try auto or cpu") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} is not supported; try auto, cpu, cuda or mps")
    return device


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    bf16: bool  # autocast to bfloat16; float16 is not offered
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context in which matrix products and convolutions run in the chosen precision."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def __str__(self) -> str:
        several = f", {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
        precision = "bfloat16" if self.bf16 else "float32"
        return f"{self.device} in {precision} ({self.reason}{several})"


def select_runtime(name: str = "auto") -> Runtime:
    """The device of that name, with bfloat16 where its hardware has it."""
    device = select_device(name)
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Runtime(device, bf16, torch.cuda.get_device_name(device))
    if device.type == "cpu":
        # Emulated bf16 is hundreds of times slower than float32.
        capabilities = torch.cpu.get_capabilities()
        bf16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        reason = f"{torch.get_num_threads()} threads, bf16 {'in' if bf16 else 'not in'} hardware"
        return Runtime(device, bf16, reason)
    return Runtime(device, False, "float32 only")


def machine() -> str:
    """The processor and how much of it is used, for result files."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.machine()
    if hasattr(torch.cpu, "get_capabilities"):
        name = torch.cpu.get_capabilities().get("cpu_name", name)
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "pqvae": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
