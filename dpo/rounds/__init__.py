"""`dpo round`: sample, score, pair, train, and sample again."""
