"""`reward-model evaluate` and `learning-curve`: how well the model repeats its judge."""
