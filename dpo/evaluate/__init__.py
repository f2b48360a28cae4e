"""`dpo evaluate`: two models' answers side by side."""
