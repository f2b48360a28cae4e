"""Answers made worse on purpose, one dimension at a time, and documents whose facts are exchanged: labels that cost nothing."""
