"""What models that answer with queries share: a set of masks, each with a class, matched to the truth's segments."""
