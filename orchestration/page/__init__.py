"""The live page: what a running loop does now, read from what its parts write down."""
