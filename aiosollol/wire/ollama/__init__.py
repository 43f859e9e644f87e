"""Ollama's native API, client side and server side."""
