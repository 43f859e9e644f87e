"""The HTTP gateway: one address in front of every Ollama on the network."""
