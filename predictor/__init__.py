"""The serving edge: a policy behind the Vertex AI prediction contract, with every decision logged."""
