"""What the operator answers over HTTP: probes and metrics."""
