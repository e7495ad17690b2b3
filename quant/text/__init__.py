"""The text that quality is measured on: where it comes from, the embedded grammar, and the corpus that the stages share."""
