"""The language model: loading, scoring and training. Knows text and tokens, never users."""
