"""Google Cloud: configurations of environments, and the calls of the Vertex AI SDK."""
