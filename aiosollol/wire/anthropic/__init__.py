"""Anthropic's API over Ollama's."""
