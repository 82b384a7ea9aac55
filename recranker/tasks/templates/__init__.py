"""Versioned texts of prompts; ``tasks.wording`` reads them."""
