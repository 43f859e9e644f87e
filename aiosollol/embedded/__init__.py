"""A real, small embedding model behind Ollama's API, for a machine without Ollama.

`EmbeddedNode` is a context manager with a `url`; `serve` runs until it is stopped. The model is
WordLlama's, from the extra "embedded", and is loaded when a node starts, not on import.
"""

from aiosollol.embedded.app import make_app
from aiosollol.embedded.model import Backend, Computed
from aiosollol.embedded.node import EmbeddedNode, serve

__all__ = ["Backend", "Computed", "EmbeddedNode", "make_app", "serve"]
