"""`judge-pipeline label`: from prompts with answers to a row of scores for each answer."""
