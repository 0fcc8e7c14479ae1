"""Compilation of a T5 by torch.compile, one block at a time.

A kind of block is one function, so all layers share its graphs. Sizes of batches are symbolic: the number of graphs
depends on the model and on what is done with it (training, validation, masks), not on the data. Sizes of 1 have graphs
of their own. Kernels are chosen for `LIKELY_SIZE`, not for the first batch, so a resumed run uses the same ones.

Results equal those of eager execution up to rounding, except that dropout draws other masks. Steps of decoding with a
cache are not compiled.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from t5_pipeline.core.errors import one_line
from t5_pipeline.core.file_cache import cache_directory

log = logging.getLogger("t5-pipeline")

LIKELY_SIZE = 256
"""Rows, input length and target length that kernels are chosen for."""

GRAPHS = 32
"""Graphs of one kind of block, at most: if it needs another one, it runs eagerly from then on."""

backend = "inductor"

# Do not choose kernels by measuring them, which would differ between runs. Dynamo resets torch's option after a graph,
# so it must be an option of the graph.
_OPTIONS = {"inductor": {"config_patches": {"deterministic": True}}}


def use_compiler(wanted: Literal["auto", "true", "false"], device_type: str) -> bool:
    """Whether to compile blocks on a device; logs one line if they cannot be.

    Args:
        wanted: the setting `compile`; "auto" compiles on GPUs.
    """
    if wanted == "false" or (wanted == "auto" and device_type == "cpu"):
        return False
    problem = _problem(device_type)
    if problem is not None:
        log.warning("compile: torch.compile does not work here (%s); running without it", problem)
    return problem is None


def use_flex(wanted: Literal["auto", "sdpa", "flex"], compiled: bool, device_type: str) -> bool:
    """Whether to use FlexAttention, which is fast only if it is compiled, and on CPUs has no compiled gradient.

    Args:
        wanted: the setting `attention`; "auto" is SDPA, as no measurement (`make gpu`) has shown otherwise.
    """
    usable = compiled and device_type != "cpu"
    if wanted == "flex" and not usable:
        log.warning("attention: flex needs a GPU and `compile: true`; using sdpa")
    return wanted == "flex" and usable


@lru_cache
def _problem(device_type: str) -> str | None:
    """Why torch.compile does not work on a device; None if it does.

    It needs a C++ compiler, on GPUs Triton too, and Python's headers. Only compiling something shows whether all work.
    """
    _keep_kernels()
    try:
        _configure()
        torch.compile(lambda x: x + 1, backend=backend, fullgraph=True)(torch.ones(8, device=device_type))
    except Exception as error:  # of torch, Triton, the compiler or the operating system
        return one_line(error)
    return None


def _keep_kernels() -> None:
    """Keep compiled kernels for later runs, beside other cached files."""
    directory = str(cache_directory() / "compiled")
    # torch's commands for the C++ compiler do not quote it; its own default is a temporary directory.
    if not any(character.isspace() for character in directory):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", directory)


_here = threading.local()


def _configure() -> None:
    """Set torch's options, which since torch 2.12 are those of a thread."""
    import torch._dynamo.config
    import torch._functorch.config
    import torch.fx.experimental._config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    # Blocks of one kind differ: the first has the position bias. FSDP2 must not reuse its graph for the others.
    torch._dynamo.config.skip_fsdp_guards = False
    # Compile the backward pass with the forward pass, which can still run eagerly if the compiler fails.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # Equal sizes in one batch are not equal in the next.
    torch.fx.experimental._config.use_duck_shape = False  # type: ignore[attr-defined]
    # Tracing looks at the gradient of every input, and torch warns of those between layers.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    _here.configured = True


class CompiledForward:
    """A function, such as the layers of a kind of block, compiled when first called; eager from the first failure on.

    Args:
        dynamic: one graph for batches of all sizes, instead of one for each size.
    """

    def __init__(self, layers: Callable[..., Any], *, dynamic: bool = True) -> None:
        self._layers = layers
        self._dynamic = dynamic
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if not hasattr(_here, "configured"):
            _configure()
        name = self._layers.__name__
        if self._compiled is None:
            options: dict[str, Any] = {"fullgraph": True, "dynamic": self._dynamic}
            self._compiled = torch.compile(self._layers, backend=_Backend(name), **options)
        try:
            return self._compiled(*arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:  # of the compiler, not of the layers
            reason = one_line(getattr(error, "inner_exception", error))  # of the backend
            log.warning("compile: %s: %s; running without torch.compile", name, reason)
            self._compiled = self._layers
            return self._layers(*arguments)


class _Backend:
    """The backend, with the sizes that kernels are chosen for; logs each graph."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._dynamo.exc import SkipFrame

        for x in inputs:
            for size in x.shape if isinstance(x, Tensor) else (x,):
                if isinstance(size, torch.SymInt):
                    env = size.node.shape_env
                    env.var_to_hint_override |= dict.fromkeys(env.var_to_range, LIKELY_SIZE)
        began = time.monotonic()
        try:
            compiled = torch._dynamo.lookup_backend(backend)(graph, inputs, **_OPTIONS.get(backend, {}))
        except SkipFrame as error:
            # Inductor skips bf16 on a GPU without it. A skipped frame would be an error that is not of the compiler.
            raise RuntimeError(str(error)) from error
        self.graphs += 1
        log.info("compile: %s, graph %d, in %.0f s", self.name, self.graphs, time.monotonic() - began)
        return compiled
