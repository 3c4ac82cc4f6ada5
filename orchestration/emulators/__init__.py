"""The emulators of Pub/Sub, BigQuery and Cloud Storage, and all that only they need."""
