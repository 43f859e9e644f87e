"""OpenAI's API over Ollama's."""
