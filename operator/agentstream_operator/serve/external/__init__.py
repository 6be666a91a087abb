"""The metrics server: answers the backlog of groups as external metrics of the cluster's autoscaling."""
