"""From the model's answers to one order: utilities and their fusion."""
