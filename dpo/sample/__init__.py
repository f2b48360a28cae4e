"""`dpo sample`: several answers to every prompt."""
