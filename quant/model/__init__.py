"""A checkpoint and its weights: the inventory, a recipe's selection, and the artifact made from them. Builds no torch module."""
