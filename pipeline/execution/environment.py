"""Command, commit, hardware and versions of a stage, recorded in manifests and shown in the report."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.core.machine import available_cores

_PACKAGE = "t5-pipeline"
_PACKAGES = (_PACKAGE, "torch", "numpy", "accelerate", "transformers", "sentencepiece", "safetensors")


def environment(launch: LaunchContext) -> dict[str, str]:
    """Command, commit and hardware of this process, each as text; what is unknown is left out."""
    found = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "memory": _memory(),
        "devices": _devices(),
        "processes": f"{launch.processes} ({launch.engine})" if launch.processes > 1 else "1",
    }
    return {name: text for name, text in found.items() if text}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def commit() -> str:
    """Commit of this program's source, with "modified" if files differ from it; empty if unknown.

    It is that of the Git checkout that contains the source, or the one that pip installed from.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        head = _git(checkout, "rev-parse", "HEAD")
        return head + (", modified" if head and _git(checkout, "status", "--porcelain", "-uno") else "")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        origin = importlib.metadata.distribution(_PACKAGE).read_text("direct_url.json")
        return str(json.loads(origin or "{}")["vcs_info"]["commit_id"])
    return ""


@functools.cache
def processor() -> str:
    """Model name of the processor, and the number of cores that this process may use."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = available_cores()
    return f"{name}, {cores} {'core' if cores == 1 else 'cores'}"


@functools.cache
def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB"
    except (OSError, ValueError):
        return ""


@functools.cache
def _devices() -> str:
    """Names and numbers of the GPUs; empty on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def _git(checkout: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
