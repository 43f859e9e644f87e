"""Whether a model has room in a node's GPU memory."""

from __future__ import annotations

from aiosollol.core.node import NodeState, full_name

_GIB = 2**30
_OVERHEAD = 1.2
"""How much more memory a loaded model is taken to need than its file is large: for its context and
buffers. A guess, not a measurement; Ollama's own estimate goes by the context length."""


def gpu_total(state: NodeState) -> int | None:
    """Bytes of GPU memory in all, None if nobody has told: its agent, or the user's `vram_gb`."""
    if state.gpu_memory_total is not None:
        return state.gpu_memory_total
    vram_gb = state.spec.vram_gb
    return None if vram_gb is None else int(vram_gb * _GIB)


def gpu_free(state: NodeState) -> int | None:
    """Bytes of GPU memory that are free, None if unknown.

    What the agent measured, else the total less what the loaded models take.
    """
    if state.gpu_memory_free is not None:
        return state.gpu_memory_free
    total = gpu_total(state)
    if total is None or state.loaded is None:
        return None
    return max(0, total - sum(model.size_vram for model in state.loaded.values()))


def fits(state: NodeState, model: str) -> bool | None:
    """Whether `model` is in GPU memory or has room there beside what is loaded; None if unknown.

    A node without GPU memory (a total of 0) makes no difference: None.
    """
    name = full_name(model)
    if state.loaded is not None and name in state.loaded:
        return True
    free, known = gpu_free(state), state.find_model(model)
    if free is None or not gpu_total(state) or known is None or not known.size:
        return None
    return known.size * _OVERHEAD <= free
