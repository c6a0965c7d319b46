"""What a step of training and a generated token cost on hardware that need not be here: memory, arithmetic, communication."""
