"""Before any work: what a model is, from its config and headers alone, and what each variant of it will weigh."""
