"""One address that is every Ollama on the network: the cluster behind HTTP."""
