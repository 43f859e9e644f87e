"""`OllamaPool` and what it is made of."""
