"""Training examples: from records to arrays, batches and splits by document."""
