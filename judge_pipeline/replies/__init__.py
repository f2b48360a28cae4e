"""The shapes a reply may take, as JSON or as text, for each kind of question."""
