"""Many answers over one reading of a prompt: layout, attention and the proof that both are exact."""
