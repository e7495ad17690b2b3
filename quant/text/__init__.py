"""The evaluation text: its sources, the embedded grammar and novels, and the corpus that the stages share."""
