"""What a question may need instead of an answer of the model."""
