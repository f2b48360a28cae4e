"""`dpo pairs` and `dpo score-short`: scored answers to preference pairs."""
