"""What the end-to-end tests stand on: a kind cluster, the images, the chart, and a load that is counted."""
