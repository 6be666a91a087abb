"""Consumes a group: fetches, holds, dispatches, renews and settles its entries."""
