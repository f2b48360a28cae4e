"""How well one set of scores agrees with another, with intervals over documents: the judge's
evaluation and the reward model's fidelity use the same figures."""
