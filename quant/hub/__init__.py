"""The Hugging Face Hub: resolving, downloading and checking repositories, and turning its failures into one-line errors."""
