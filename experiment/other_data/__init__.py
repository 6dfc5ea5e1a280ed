"""Other rows than those of the test split: how unlikely they are, and which class they are of."""
