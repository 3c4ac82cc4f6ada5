"""The emulators of Pub/Sub, BigQuery and Cloud Storage. Nothing that runs on Google Cloud imports this package."""
