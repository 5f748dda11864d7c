"""Several processes (ranks) that work as one: which this is, and what they tell each other.

The only file that reads what torchrun (and whatever sets the same, such as accelerate) puts into
the environment: RANK, LOCAL_RANK, WORLD_SIZE, and MASTER_ADDR and MASTER_PORT for torch. Without
them there is one process, every function here is a no-op, and torch.distributed is not touched.
Imports torch where it is used: commands ask for their rank before, and --help need not wait.
"""

import contextlib
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from pqvae.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

# The others wait while rank 0 evaluates, or encodes a data set.
PATIENCE = timedelta(hours=6)

# Gloo's threads let go of a tensor a moment after its collective is done. If its Python object has
# gone by then, that takes the interpreter, and a process at its very end aborts. So those stay that
# may be the last ones of a run. (broadcast_object_list hides its tensors, so it cannot be used.)
_kept: "deque[Tensor]" = deque(maxlen=8)


def rank() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0)


def local_rank() -> int:
    """The number of this process on its machine: which GPU is its own."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """How many processes there are, on all machines."""
    return _number("WORLD_SIZE", 1)


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks and writes."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdecimal()):
        raise UserError(f"environment: {name} must be a whole number, not {text!r}")
    return int(text) if text else default


@contextlib.contextmanager
def process_group(device: "torch.device") -> Iterator[None]:
    """The processes are connected inside of this block (gloo between CPUs, nccl between GPUs)."""
    if world_size() == 1:
        yield
        return
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"environment: {reason}; start several processes by torchrun") from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


def broadcast(value: T) -> T:
    """What rank 0 passes here, in every process.

    Args:
        value: Tensors, numbers, texts and containers of these: nothing that arrives is executed.
            Tensors arrive on the CPU. What other ranks pass does not matter.
    """
    if world_size() == 1:
        return value
    import torch
    from torch import distributed

    buffer, data = io.BytesIO(), torch.empty(0, dtype=torch.uint8)
    if is_rank_zero():
        torch.save(value, buffer)
        data = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    size = torch.tensor(len(data))
    _kept.extend((size, data))
    distributed.broadcast(size, src=0)
    distributed.broadcast(data.resize_(int(size)), src=0)
    if is_rank_zero():
        return value
    return torch.load(io.BytesIO(data.numpy().data), map_location="cpu", weights_only=True)


def on_rank_zero(function: Callable[[], T]) -> T:
    """Call the function in rank 0 only; every process gets its result, as by ``broadcast``.

    What it raises is raised in rank 0; the others then end, as it is said once.
    """
    if world_size() == 1:
        return function()
    if not is_rank_zero():
        done, result = broadcast((False, None))
        if not done:
            sys.exit(2)
        return result  # type: ignore[bad-return]
    try:
        result = function()
    except BaseException:
        broadcast((False, None))
        raise
    broadcast((True, result))
    return result


def any_rank(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    if world_size() == 1:
        return flag
    import torch
    from torch import distributed

    flags = torch.tensor(int(flag))  # on the CPU: a GPU need not be waited for
    _kept.append(flags)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags)


def all_reduce_sum(tensors: Iterable["Tensor"]) -> None:
    """Replace tensors of one type and device by their sums over all processes."""
    if world_size() == 1:
        return
    import torch
    from torch import distributed

    # One sum in one order, not DistributedDataParallel: 2 processes then do to the bit what 1 does
    # in 2 micro-batches.
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def gather(rows: "Tensor", start: int, total: int) -> "Tensor":
    """The rows of all processes, in order.

    Args:
        rows: (b, ...), the rows from ``start`` on; those of all processes are one after the other.
        start: Index of the first.
        total: Number of rows of all processes.
    """
    if world_size() == 1:
        return rows
    from torch import distributed

    gathered = rows.new_zeros(total, *rows.shape[1:])
    gathered[start : start + len(rows)] = rows
    distributed.all_reduce(gathered)  # a sum with zeros is exact
    return gathered


def check_ranks_agree(digest: Callable[[], str], what: str) -> None:
    """Compare a digest over all processes.

    Raises:
        UserError: It differs, so the processes have come apart.
    """
    if world_size() == 1:
        return
    import torch

    own = torch.tensor([list(digest().encode())], dtype=torch.uint8)
    digests = [bytes(row.tolist()).decode() for row in gather(own, rank(), world_size())]
    apart = [index for index, other in enumerate(digests) if other != digests[0]]
    if apart:
        raise UserError(
            f"{what}: not the same in all processes (rank {apart[0]} has {digests[apart[0]][:8]}, "
            f"rank 0 {digests[0][:8]}); they need the same code, data and kind of machine"
        )


def barrier() -> None:
    """Return when every process has come here."""
    any_rank(False)
