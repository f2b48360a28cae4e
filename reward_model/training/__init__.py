"""`reward-model train`."""
