"""Reconciles one resource of each kind."""
