"""Ollama's own API, from a client's side and from a server's."""
