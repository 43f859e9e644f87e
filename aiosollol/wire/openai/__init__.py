"""OpenAI's API on top of Ollama's."""
