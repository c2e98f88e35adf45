"""What makes the students train faster without another result: a layout of memory, and compilation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

COMPILE_ARGUMENTS: dict[str, Any] = {}  # of torch.compile: tests name a back end that needs no compiler


def is_asynchronous(device: torch.device) -> bool:
    """Tell whether a device computes beside the host, which waits for all it has queued where it reads a result."""
    return device.type != "cpu"


def suits_channels_last(device: torch.device, precision: str) -> bool:
    """Tell where convolutions are faster with channels as the innermost dimension.

    On a CPU in float32 an epoch took 0.82 of the time (docs/training-cost.md). Other cases are not measured.

    Args:
        device: Where training runs.
        precision: The trainer's, such as ``"32-true"``.
    """
    return device.type == "cpu" and precision == "32-true"


def suits_fused_adam(device: torch.device, precision: str) -> bool:
    """Tell where torch's fused Adam is faster: one pass over the weights instead of one for each of Adam's operations.

    On a CPU a step of MixedTeacher's students took a quarter of the time of the usual one. Other devices are not
    measured, and in mixed precision Lightning clips no gradients for it.

    Args:
        device: Where training runs.
        precision: The trainer's, such as ``"32-true"``.
    """
    return device.type == "cpu" and precision == "32-true"


def adapt_restored(optimizer: Optimizer) -> None:
    """Let an optimiser that a checkpoint restored compute as this run does.

    The checkpoint brings the form that was fastest where it was made, and the state of each weight in that run's order
    of memory, which the fused form takes for the weight's own.

    Args:
        optimizer: What this run made, with its state restored; one without a state is left as it is.
    """
    for group in optimizer.param_groups:
        if "fused" in optimizer.defaults:
            group["fused"] = optimizer.defaults["fused"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if not isinstance(value, torch.Tensor):
                    continue
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                elif name == "step":  # the fused form counts where it computes, the usual one on the CPU
                    there = group.get("fused") or group.get("capturable")
                    state[name] = value.to(parameter.device if there else "cpu")


def speed_up(students: nn.ModuleDict, channels_last: bool, compiled: bool) -> None:
    """Change how the students compute, in place: neither the names nor the values of their weights change.

    Args:
        students: The students by name.
        channels_last: Lay weights out with channels as the innermost dimension; images are to be laid out likewise.
        compiled: Compile each student when it is first used.
    """
    for student in students.values():
        if channels_last:
            _lay_out(student, torch.channels_last)
        if compiled:
            student.compile(**COMPILE_ARGUMENTS)


def slow_down(students: nn.ModuleDict) -> None:
    """Take back what :func:`speed_up` did, for whatever comes behind training.

    Args:
        students: The students by name.
    """
    for student in students.values():
        _lay_out(student, torch.contiguous_format)
        student._compiled_call_impl = None  # what nn.Module.compile sets; it has no inverse


def students_context(compiled: bool) -> AbstractContextManager[Any]:
    """Make a context in which compiled students are compiled for training steps alone.

    Validation has batches of other sizes and no gradients; each kind would be compiled anew, and used once an epoch.

    Args:
        compiled: Whether the students are compiled.
    """
    if compiled and not torch.is_grad_enabled():
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _lay_out(module: nn.Module, order: torch.memory_format) -> None:
    module.to(memory_format=order)
