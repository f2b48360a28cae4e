"""`reward-model score`, and the scorer for Python, vLLM and TRL."""
