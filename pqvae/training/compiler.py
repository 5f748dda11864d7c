"""Whether networks can be compiled here, asked before anything slow is done."""

import importlib
import os
import shutil

import torch

from pqvae.errors import UserError


def require_compiler(device: torch.device) -> None:
    """Check that there is the compiler that ``trainer.compile`` needs.

    Raises:
        UserError: There is none.
    """
    if device.type == "cpu" and not _has_cpp_compiler():
        missing, variable = "a C++ compiler such as g++", "CXX"
    elif device.type == "cuda" and not _has_c_compiler():
        missing, variable = "a C compiler such as gcc", "CC"
    else:
        return
    raise UserError(
        f"trainer.compile=true needs {missing}, on the PATH or named by {variable}; install one, "
        "or leave trainer.compile=false"
    )


def _has_cpp_compiler() -> bool:
    try:  # just what torch will do; private, so it may have moved
        builder = importlib.import_module("torch._inductor.cpp_builder")
        invalid = importlib.import_module("torch._inductor.exc").InvalidCxxCompiler
        find = builder.get_cpp_compiler
    except (ImportError, AttributeError):
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    try:
        find()
    except (invalid, OSError):
        return False
    return True


def _has_c_compiler() -> bool:
    # As triton looks for one, which builds its launchers with it.
    names = [os.environ["CC"]] if os.environ.get("CC") else ["clang", "gcc", "cc"]
    return any(shutil.which(name) for name in names)
