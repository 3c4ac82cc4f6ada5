"""The pipelines bootstrap, retrain and tune: their definitions, tasks, plans, runs and triggers."""
