"""The closed loop on one machine: its settings, processes, simulated viewers, accounting and report."""
