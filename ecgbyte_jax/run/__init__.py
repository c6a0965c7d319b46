"""Where the parts meet: prepare, train, evaluate."""
