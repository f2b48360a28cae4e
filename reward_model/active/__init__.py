"""`reward-model propose`: which prompts to label next."""
