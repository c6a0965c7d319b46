"""What an export holds beside weights and tokenizers, so that a program without this package can ask the model."""
