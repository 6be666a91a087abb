"""Runs what is looked at again and again: measuring, wake-up, deleted pods, deletion costs."""
