"""`OllamaPool` and its parts."""
