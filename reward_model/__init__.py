"""The local reward model: trained on the judge's labels, it scores many answers in one reading of the document."""
