"""What a model is fed: specifications, random and recorded inputs, sizes to try."""
