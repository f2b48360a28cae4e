"""`report.html` of a label run."""
