"""The long-context LLM judge: documents, questions and answers in; four scores per answer with evidence out."""

__version__ = "0.1.0"
