"""The Hugging Face Hub: resolves, downloads and checks repositories, and turns failures into one-line errors."""
