"""Reports what the engine knows: views, health and metrics."""
