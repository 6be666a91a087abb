"""Observe, plan, apply, report: the work queue and the store of known resources."""
