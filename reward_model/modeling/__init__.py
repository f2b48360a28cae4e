"""A reward model on disk and in memory: base model, head, prompt format, card."""
