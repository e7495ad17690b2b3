"""Training of the small models that this project carries, so that it runs where no model hub can be reached."""
