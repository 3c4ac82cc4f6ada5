"""A project folder: one product's items, context and settings, and all that runs for it on one machine."""
