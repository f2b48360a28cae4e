"""Engines that draw answers: transformers, vLLM in process, any OpenAI-compatible endpoint."""
