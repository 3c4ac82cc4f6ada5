"""Apache Beam jobs: simulate, ingest and export. One job is one module."""
