"""A document as the judge reads it: cut into pieces, searched, cited, its language known."""
