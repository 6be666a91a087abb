"""Counts, measures, traces and answers probes."""
